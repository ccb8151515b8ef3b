"""Every setting of the SDK's quote is a flag of the shell, and a flag means what the setting
means.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from datahub import Market
from datahub.buyer import networks
from datahub.cli import app
from datahub.errors import OrderRefused
from datahub.shell.settings import Asked, Training, made_by
from datatokens.chain.rpc_server import accounts
from datatokens.terms import USUAL_DEADLINE_S, DisputeTerms
from tests.datahub.hub_world import FEE_BPS, HubWorld

# settings that are named once for each of several, or are several flags together
FLAGS = {
    "datasets": {"--dataset"},
    "vouchers": {"--voucher"},
    "tiers": {"--tier"},
    "purpose_codes": {"--purpose-code"},
    "server_rates": {"--server-rate"},
    "dispute": {
        "--dispute-arbiter",
        "--dispute-window-s",
        "--dispute-bond-units",
        "--dispute-silent-bps",
    },
}
OF_THE_SHELL = {"--key-file", "--network", "--out", "--yes", "--json"}
ALL = {"dataset": [1, 2], "epsilon": 1.5, "purpose": "research"}
ARBITER = "0x" + "12" * 20


def flags(*words: str) -> set[str]:
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    return {one for parameter in command.params for one in parameter.opts if one[:2] == "--"}


def wanted(method: Any, *fixed: str) -> set[str]:
    names = [n for n in inspect.signature(method).parameters if n not in ("self", *fixed)]
    return {flag for n in names for flag in FLAGS.get(n, {f"--{n.replace('_', '-')}"})}


def test_order_new_and_quote__have_a_flag_for_every_setting_of_the_sdk() -> None:
    every = wanted(Market.quote)
    assert len(every) >= 25
    assert flags("order", "new") - OF_THE_SHELL == every
    assert flags("order", "quote") - OF_THE_SHELL == every


def test_order_ask__has_a_flag_for_every_setting_that_a_question_leaves_open() -> None:
    of_the_question = {
        *("model", "example", "loss", "rounds", "local_steps", "learning_rate", "clip_norm"),
        *("server_momentum", "server_rates"),
    }
    assert flags("order", "ask") - OF_THE_SHELL == wanted(Market.quote, *of_the_question)


def test_settings__left_out__are_those_of_the_sdk() -> None:
    given = Training(**ALL).settings()
    for name, parameter in inspect.signature(Market.quote).parameters.items():
        if name not in ("self", "datasets", "epsilon", "purpose"):
            assert given[name] == parameter.default, name
    assert given["deadline_s"] == USUAL_DEADLINE_S


def test_settings__given__arrive() -> None:
    given = Training(
        **ALL,
        purpose_code=["DUO:0000006"],
        voucher=[2],
        tier=["2=1"],
        quorum=1,
        server_rate=["weight=0.5", "a=b=2"],
        dispute_arbiter=ARBITER,
        dispute_window_s=60,
        dispute_bond_units=0,
        dispute_silent_bps=5000,
    ).settings()
    assert given["purpose_codes"] == ["DUO:0000006"] and given["vouchers"] == [2]
    assert given["tiers"] == {2: 1}
    assert given["server_rates"] == {"weight": 0.5, "a=b": 2.0} and given["quorum"] == 1
    assert given["dispute"] == DisputeTerms(60, ARBITER, 0, 5000)


def test_settings__half_a_dispute_or_a_rate_without_a_number__are_named() -> None:
    with pytest.raises(OrderRefused, match=r"--dispute-window-s, --dispute-bond-units, --disp"):
        Asked(**ALL, dispute_arbiter=ARBITER).settings()
    with pytest.raises(OrderRefused, match="--tier '2' must be DATASET=TIER"):
        Training(**ALL, tier=["2"]).settings()
    with pytest.raises(OrderRefused, match="--server-rate 'weight' must be NAME=NUMBER"):
        Training(**ALL, server_rate=["weight"]).settings()


MODULE = """
from torch import nn, zeros


def make_model():
    return nn.Sequential(nn.Linear(2, 1))


def make_example():
    return zeros(1, 2)


def broken():
    raise KeyError("weights")


number = 3
"""


def test_model__of_a_file__is_what_its_function_makes(tmp_path: Path) -> None:
    from torch import Tensor, nn

    (file := tmp_path / "mine.py").write_text(MODULE)
    given = Training(**ALL, model=f"{file}:make_model", example=f"{file}:make_example").settings()
    assert isinstance(given["model"], nn.Sequential) and isinstance(given["example"], Tensor)


def test_order_quote__with_every_kind_of_flag__is_in_the_terms(
    hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    (file := tmp_path / "mine.py").write_text(MODULE)
    (key := tmp_path / "wallet.key").write_text(accounts()[1][1])
    words = f"""
        order quote --key-file {key} --dataset 1 --dataset 2 --epsilon 2 --purpose research
        --purpose-code DUO:0000006 --model {file}:make_model --example {file}:make_example
        --rounds 3 --local-steps 2 --learning-rate 0.5 --clip-norm 0.75 --server-momentum 0.25
        --server-rate 0.weight=0.5 --reward-units 600 --compute-minutes 3 --quorum 1
        --deadline-s 5000 --answer-s 1000 --max-fee-units 100000 --delta 1e-6
        --dispute-arbiter {ARBITER} --dispute-window-s 60 --dispute-bond-units 5
        --dispute-silent-bps 5000
    """.split()
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    found = json.loads(ended.stdout)
    terms, spec = found["terms"], found["terms"]["spec"]
    assert (terms["quorum"], terms["reward_units"]) == (1, 600) and found["rounds"] == 3
    assert terms["dispute"] == {
        "window_s": 60,
        "arbiter": ARBITER,
        "bond_units": 5,
        "silent_bps": 5000,
    }
    assert terms["deadline"] - spec["answer_by"] == 4000
    assert spec["purpose_codes"] == ["DUO:0000006"] and spec["server_rates"] == {"0.weight": 0.5}
    assert (spec["local_steps"], spec["plan"]["clip_norm"], spec["plan"]["delta"]) == (
        2,
        0.75,
        1e-6,
    )
    said = CliRunner(env={"COLUMNS": "200"}).invoke(app, words).stdout
    assert f"({terms_total(terms)} base units) in all" in said and "payment waits 60 s" in said
    assert not (tmp_path / "home" / "jobs").exists()  # nothing is kept of a quote


def terms_total(terms: dict[str, Any]) -> int:
    lines = terms["datasets"]
    prices = sum(line["price_units"] + line["compute_cap_units"] for line in lines)
    return int(prices + terms["reward_units"] + terms["fee_units"])


def test_model_check__ones_own_and_a_wrong_one__before_anything_is_ordered(
    hub_url: str, tmp_path: Path
) -> None:
    (file := tmp_path / "mine.py").write_text(MODULE)
    words = ["model", "check", f"{file}:make_model", "--dataset", "1", "--hub", hub_url]
    ended = CliRunner().invoke(app, [*words, "--json"])
    said = json.loads(ended.stdout)
    assert said["loss"] == "binary_cross_entropy" and said["graph_bytes"] > 0
    file.write_text(MODULE.replace("Linear(2, 1)", "Linear(3, 1)"))
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, OrderRefused)
    assert "the dataset has 2 inputs" in str(ended.exception)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{}:make", "has no function 'make'; it has .*make_model"),
        ("{}:number", "has no function 'number'"),
        ("{}:broken", "ended in KeyError: 'weights'"),
        ("{}x:make_model", "must be FILE.py:NAME"),
        ("nothing.py:make_model", "nothing.py does not exist"),
    ],
)
def test_model__of_a_file__mistakes_are_one_sentence(tmp_path: Path, given: str, said: str) -> None:
    (file := tmp_path / "mine.py").write_text(MODULE)
    with pytest.raises(OrderRefused, match=f"--model.*{said}"):
        made_by("--model", given.format(file))
