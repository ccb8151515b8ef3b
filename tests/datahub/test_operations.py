"""What an operator's machines ask a hub: does it live, is it of use, its figures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine

from datahub import config
from datahub.errors import ConfigError
from datahub.market import readiness
from datahub.market.desk import Desk
from datahub.market.readiness import Probe, Readiness
from datahub.market.reconcile import Loop
from datahub.web import exposition
from datahub.web.api import create_app
from datahub.web.counted import OTHER, Counts
from datahub.web.exposition import Family, Sample
from datahub.web.operations import metrics_token
from datatokens.chain.connection import shown
from datatokens.errors import ChainUnreachable
from fl_server.errors import SuperLinkError
from tests.datahub.fixtures import serving
from tests.datahub.hub_world import HubWorld


def missing(desk: Desk, loops: list[Loop] | None = None) -> list[str]:
    return Readiness(desk, lambda: loops or []).missing()


def parsed(text: str) -> dict[str, float]:
    """Every sample of an exposition by its name with labels; every line is one of the format."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in found, name
            found[name] = float(value)
    return found


def figures(hub: HubWorld, url: str) -> dict[str, float]:
    token = metrics_token(hub.desk.config.folder)
    answer = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == exposition.CONTENT_TYPE
    return parsed(answer.text)


def test_healthz__chain_and_database_are_gone__still_lives(
    hub: HubWorld, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(hub.desk.chain, "_ask", gone)
    monkeypatch.setattr(Desk, "session", gone)
    answer = httpx.get(f"{hub_url}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert httpx.get(f"{hub_url}/health").status_code == 404


def test_readyz__everything_answers__is_ready(hub_url: str) -> None:
    answer = httpx.get(f"{hub_url}/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "missing": []})


def no_database(hub: HubWorld) -> Desk:
    desk = replace(hub.desk, engine=create_engine("sqlite:////nowhere/at/all.sqlite"))
    object.__setattr__(desk, "index", hub.desk.index)
    return desk


def no_superlink(hub: HubWorld) -> Desk:
    def away() -> set[int]:
        raise SuperLinkError("the SuperLink at 10.0.0.7:9092 does not answer")

    return changed(hub, superlink=SimpleNamespace(online_nodes=away))


def hanging_superlink(hub: HubWorld) -> Desk:
    return changed(hub, superlink=SimpleNamespace(online_nodes=lambda: time.sleep(60)))


def silent_chain(hub: HubWorld) -> Desk:
    hub.desk.chain.answered_at = time.time() - 99
    return hub.desk


def old_index(hub: HubWorld) -> Desk:
    hub.desk.index.caught_up_at = time.time() - 99
    return hub.desk


def far_index(hub: HubWorld) -> Desk:
    hub.desk.index.head = hub.desk.index.block + 51
    return hub.desk


def stopping(hub: HubWorld) -> Desk:
    hub.desk.stopping.set()
    return hub.desk


def changed(hub: HubWorld, **parts: Any) -> Desk:
    desk = replace(hub.desk, **parts)
    object.__setattr__(desk, "index", hub.desk.index)
    return desk


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (no_database, "the database does not answer"),
        (no_superlink, "the SuperLink does not answer"),
        (hanging_superlink, "the SuperLink has not answered for 0 s"),
        (silent_chain, "the chain has not answered for 99 s (30 at most)"),
        (old_index, "the index was last up to the chain 99 s ago (30 at most)"),
        (far_index, "the index is 51 blocks behind the chain (50 at most)"),
        (stopping, "the hub is stopping"),
    ],
)
def test_readiness__one_thing_is_missing__its_sentence_alone_and_no_address(
    hub: HubWorld,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[HubWorld], Desk],
    sentence: str,
) -> None:
    monkeypatch.setattr(readiness, "ANSWER_S", 0.2)
    hub.desk.chain.now()
    assert missing(broken(hub)) == [sentence]


def test_readiness__a_loop_hangs_or_has_died__is_named(hub: HubWorld) -> None:
    hub.desk.chain.now()
    hanging, let_go = Loop(hub.desk, {lambda _: let_go.wait(20): 0.0}, "index"), threading.Event()
    hanging.start()
    assert missing(hub.desk, [hanging]) == []
    hanging.turned_at = time.time() - 90
    (sentence,) = missing(hub.desk, [hanging])
    assert sentence == "the loop 'index' has not turned for 90 s (60 at most)"
    hanging.stopping.set()
    let_go.set()
    hanging.join(20)
    assert "the loop 'index'" in missing(hub.desk, [hanging])[0]


def test_readyz__something_is_missing__503_with_every_sentence(hub: HubWorld, hub_url: str) -> None:
    hub.desk.stopping.set()
    answer = httpx.get(f"{hub_url}/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "missing": ["the hub is stopping"]}


def test_probe__hangs__is_asked_once_however_often_its_answer_is_wanted() -> None:
    asked, let_go = [], threading.Event()

    def ask() -> int:
        asked.append(1)
        let_go.wait(20)
        return 7

    probe = Probe(ask)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            probe(0.01)
    let_go.set()
    assert probe(20) == 7 and len(asked) == 1


def test_metrics__jobs_and_requests__are_counted(hub: HubWorld, hub_url: str) -> None:
    row, terms = hub.job()
    hub.desk.index.catch_up()
    for path in (
        "/api/v1/datasets/1",
        "/api/v1/datasets/2",
        "/api/v1/datasets/99",
        f"/api/v1/jobs/{row.job_id}",
    ):
        httpx.get(hub_url + path)
    found = figures(hub, hub_url)
    template = 'route="/api/v1/datasets/{dataset_id}"'
    assert found[f'datahub_requests_total{{method="GET",{template},status="200"}}'] == 2
    assert found[f'datahub_requests_total{{method="GET",{template},status="404"}}'] == 1
    assert found[f"datahub_request_seconds_count{{{template}}}"] == 3
    assert found[f'datahub_request_seconds_bucket{{{template},le="+Inf"}}'] == 3
    assert found['datahub_open_jobs{state="funded"}'] == 1
    assert found["datahub_index_lag_blocks"] == 0
    assert found["datahub_index_block"] == hub.desk.chain.block_number()
    assert found["datahub_chain_answer_age_seconds"] < 30
    assert found['datahub_loop_turn_age_seconds{loop="index"}'] < 30
    purse = hub.desk.chain.balance_wei(hub.bank.operator.address or "")
    assert found["datahub_operator_wei"] == pytest.approx(purse)
    assert found["datahub_leases"] == found["datahub_watchers"] == 0
    assert found["process_resident_memory_bytes"] > 2**20
    chain = hub.bank.operator
    chain.rpc("evm_increaseTime", 3700)
    chain.rpc("evm_mine")
    hub.desk.escrow.refund(terms)
    hub.desk.index.catch_up()
    with serving(create_app(hub.desk, drive=False)) as again:  # nothing is kept from before
        later = figures(hub, again)
    assert later['datahub_units_total{how="refunded"}'] == terms.amount_units
    assert later['datahub_units_total{how="settled"}'] == 0


def test_metrics__paths_and_methods_that_strangers_make_up__add_no_label(
    hub: HubWorld, hub_url: str
) -> None:
    before = len(figures(hub, hub_url))
    for number in range(50):
        httpx.get(f"{hub_url}/nothing-{number}")
        httpx.request(f"M{number}", f"{hub_url}/api/v1/jobs/{number}")
        httpx.get(f"{hub_url}/static/none-{number}")
    found = figures(hub, hub_url)
    assert f'datahub_requests_total{{method="GET",route="{OTHER}",status="404"}}' in found
    assert len(found) - before < 50  # some routes and statuses, not 150


@pytest.fixture(params=["loopback", "anywhere"])
def metrics_url(hub: HubWorld, request: pytest.FixtureRequest) -> Iterator[str]:
    desk = changed(hub, config=replace(hub.desk.config, metrics=request.param))
    with serving(create_app(desk, drive=False)) as url:
        yield url


def test_metrics__without_the_token__nobody_is_told_from_wherever_they_come(
    hub: HubWorld, metrics_url: str
) -> None:
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer x"}):
        answer = httpx.get(f"{metrics_url}/metrics", headers=headers)
        assert answer.status_code == 403 and "datahub_" not in answer.text
    token = hub.desk.config.folder / "metrics.token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64


def test_metrics__by_a_proxy__is_no_caller_of_this_machine(hub: HubWorld, hub_url: str) -> None:
    token = metrics_token(hub.desk.config.folder)
    for name in ("x-forwarded-for", "forwarded", "x-real-ip", "via"):
        headers = {"authorization": f"Bearer {token}", name: "203.0.113.9"}
        answer = httpx.get(f"{hub_url}/metrics", headers=headers)
        assert answer.status_code == 403 and "this machine" in answer.text


def test_hub_toml__metrics_for_somebody_else__one_sentence(hub: HubWorld) -> None:
    path = hub.desk.config.folder / "hub.toml"
    path.write_text(path.read_text() + 'metrics = "everybody"\n')
    with pytest.raises(ConfigError, match="metrics='everybody' must be loopback or anywhere"):
        config.read(hub.desk.config.folder)


def test_exposition__any_text_in_a_label__is_escaped() -> None:
    one = Family("a", exposition.GAUGE, "b\nc", [Sample(1.5, {"x": 'a"b\\c\nd'})])
    assert exposition.text([one]) == '# HELP a b\\nc\n# TYPE a gauge\na{x="a\\"b\\\\c\\nd"} 1.5\n'


def test_counts__buckets__are_cumulative_and_their_last_is_the_count() -> None:
    counts = Counts()
    for took in (0.001, 0.005, 0.02, 3.0, 99.0):
        counts.add("GET", "/x", 200, took)
    found = parsed(exposition.text(counts.families()))
    buckets = [v for k, v in found.items() if k.startswith("datahub_request_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[0] == 2 and buckets[-1] == 5
    assert found['datahub_request_seconds_sum{route="/x"}'] == pytest.approx(102.026)


def test_a_chain_s_error__names_its_host_and_no_provider_s_key() -> None:
    assert shown("https://user:pass@rpc.example:8545/v3/KEY?k=KEY#confirmations=3") == (
        "https://rpc.example:8545"
    )
    from datatokens.chain.connection import connect

    with pytest.raises(ChainUnreachable) as caught:
        connect("http://127.0.0.1:9/v3/THEKEY")
    assert "THEKEY" not in str(caught.value)
