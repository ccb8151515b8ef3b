"""Every rule of an owner's policy refuses with its own sentence, and nothing else does."""

from dataclasses import replace

import pytest

from fl_client.errors import PolicyRefusal
from fl_client.node.policy import Policy, Request, admit

BUYER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
POLICY = Policy((BUYER,), ("Research",), 2.0, 20)
REQUEST = Request(BUYER, "research", 1.9, 1e-5, 20)


def test_admit__within_every_rule__returns() -> None:
    admit(POLICY, REQUEST, 1e-5)
    admit(replace(POLICY, buyers=("*",), purposes=("*",)), replace(REQUEST, purpose="x"), 1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"buyer": "0x" + "1" * 40}, "buyer=0x1111"),
        (
            {"purpose": "advertising"},
            "purpose='advertising' is not allowed here; allowed: Research",
        ),
        ({"delta": 1e-3}, "delta=0.001 is larger than the 1e-05"),
        ({"epsilon": 2.001}, "epsilon=2.001 is more than the 2"),
        ({"persons": 19}, "under this hospital's floor of 20"),
    ],
)
def test_admit__one_rule_broken__says_which(change: dict, said: str) -> None:
    with pytest.raises(PolicyRefusal, match=said.replace("(", r"\(")):
        admit(POLICY, replace(REQUEST, **change), 1e-5)


def test_admit__small_cohort__does_not_name_the_true_count() -> None:
    with pytest.raises(PolicyRefusal) as refused:
        admit(POLICY, replace(REQUEST, persons=13), 1e-5)
    assert "13" not in str(refused.value)
