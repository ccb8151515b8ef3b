"""Job states only move forward, and an end is an end."""

from hypothesis import given
from hypothesis import strategies as st

from datahub.market.domain import FINAL, JobState, advance

states = st.sampled_from(list(JobState))


@given(states, states)
def test_advance__any_two_states__never_backwards(current: JobState, seen: JobState) -> None:
    after = advance(current, seen)
    order = list(JobState)
    assert order.index(after) >= order.index(current)
    assert after in (current, seen)


@given(st.sampled_from(sorted(FINAL)), states)
def test_advance__from_an_end__stays(current: JobState, seen: JobState) -> None:
    assert advance(current, seen) is current
