"""The README is held to the code: commands, files, figures of its transcript."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from typer.main import get_command

from datahub.cli import app
from datatokens.refusals import SENTENCES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
FILES = sorted(
    p
    for room in ("datatokens", "fl_client", "fl_server", "datahub")
    for p in (ROOT / room).rglob("*.py")
    if "node_modules" not in p.parts
)


def names() -> list[str]:
    found = []
    for name, command in COMMANDS.items():
        inner = getattr(command, "commands", None)
        found += [f"{name} {one}" for one in inner] if inner else [name]
    return [n for n in found if n not in ("demo", "chain deploy", "chain status")]


@pytest.mark.parametrize("name", names())
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`datahub {name}`" in README


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_file_is_in_the_tree(path: Path) -> None:
    if path.name != "__init__.py":
        assert path.name in README.split("## Where things are")[1]


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_transcript__money_adds_up_to_the_last_unit() -> None:
    amount = r"([\d.]+)"
    line = re.search(
        rf"escrowed {amount} tUSD = paid {amount} tUSD \+ hub's fee {amount} tUSD\s\+ change "
        rf"{amount}",
        README,
    )
    assert line is not None
    price, paid, fee, change = map(Decimal, line.groups())
    assert price == paid + fee + change
    rows = [
        list(map(Decimal, r))
        for r in re.findall(r"│ \w+ site\s+│\s+([\d.]+) │\s+([\d.]+) │\s+([\d.]+) │", README)
    ]
    assert len(rows) == 4 and sum(r[0] for r in rows) == paid
    assert all(r[0] == r[1] + r[2] for r in rows)


def test_measured_figures__are_those_of_the_committed_run() -> None:
    figures = json.loads((ROOT / "tests" / "benchmarks" / "first_light.json").read_text())
    table = README.split("## Measured")[1].split("## Developing")[0]
    for key, digits in (
        ("auc.mean", 4),
        ("auc.sd", 4),
        ("auc.without_dp", 4),
        ("seconds.funded_to_settled", 1),
        ("seconds.round_median", 2),
        ("seconds.rounds", 1),
        ("seconds.admission", 1),
    ):
        assert f"{figures[key]:.{digits}f}" in table, key


def test_every_custom_error_of_our_interfaces_has_a_sentence() -> None:
    text = "".join(
        p.read_text() for p in (ROOT / "datatokens" / "contracts" / "interfaces").glob("*.sol")
    )
    assert set(re.findall(r"^\s+error (\w+)\(", text, re.MULTILINE)) <= set(SENTENCES)


ATTACKS = [
    found
    for page in (ROOT / "datahub" / "SECURITY.md", ROOT / "fl_client" / "THREATS.md")
    for found in re.findall(r"`([\w/]+\.py)::(\w+|\*)`", page.read_text())
]


@pytest.mark.parametrize(("file", "name"), ATTACKS, ids=str)
def test_every_attack_in_the_table_has_its_test(file: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / "tests" / file).read_text() or name == "*"


def test_every_command_in_the_operators_guide_exists() -> None:
    guide = (ROOT / "fl_client" / "OPERATING.md").read_text()
    asked = {" ".join(found) for found in re.findall(r"datahub (node|owner) ([a-z-]+)", guide)}
    assert len(asked) > 20 and asked <= set(names())


def test_every_command_and_metric_in_the_hubs_guide_exists() -> None:
    guide = (ROOT / "datahub" / "OPERATING.md").read_text()
    asked = {
        " ".join(found) for found in re.findall(r"datahub (hub|chain|job|node) ([a-z]+)", guide)
    }
    assert len(asked) > 6 and asked <= {*names(), "chain start"}
    code = "".join(
        (ROOT / "datahub" / "web" / f"{n}.py").read_text() for n in ("figures", "counted")
    )
    metrics = set(re.findall(r'"((?:datahub|process)_[a-z_]+)"', code))
    said = set(re.findall(r"`((?:datahub|process)_[a-z_]+)", guide))
    assert said <= metrics and metrics - said <= {
        "datahub_index_block",
        "process_start_time_seconds",
    }


def test_the_table_of_attacks__names_forty_or_more() -> None:
    assert len(set(ATTACKS)) >= 40
