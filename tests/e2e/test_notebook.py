"""The notebook from a search to a ROC curve: every cell on the running marketplace, without
Jupyter; and that what is committed is a notebook without outputs and places.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from datahub.demo import stack
from tests.e2e.conftest import Marketplace

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "datahub" / "demo" / "search_to_roc.ipynb"
BOOK: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
CODE = [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]
# nbformat 4.5: what a cell of each kind must have, and may
MUST = {"id", "cell_type", "metadata", "source"}
OF_CODE = {"outputs", "execution_count"}
PLACES = r"/home/|/root|/tmp|/Users/|[A-Za-z]:\\|0x[0-9a-fA-F]{40}"


def executed(cells: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    """The names after these cells, in order; `given` comes after the cell of parameters."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{FILE.name} {cell['id']}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(given) <= set(names)
            names |= given
    return names


@pytest.mark.e2e
def test_notebook__every_cell_on_a_running_market__ends_in_a_curve(
    marketplace: Marketplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m = marketplace

    def offers() -> bool:
        return all(row["offer"] for row in m.buyer.hub.get("/api/v1/datasets", id=m.ids))

    stack.wait_for("every offer", offers, m.stack.processes)
    matplotlib.use("Agg")
    given = {
        "hub": m.stack.hub_url,
        "chain": m.stack.chain_url,
        "key": m.stack.accounts[stack.BUYER][1],
        "folder": str(tmp_path),
    }
    names = executed(CODE, given)
    said = capsys.readouterr().out
    found = re.search(r"^AUC (0\.\d{3}|1\.000) on (\d+) held-out records$", said, re.MULTILINE)
    assert found is not None, said
    assert float(found.group(1)) > 0.9 and int(found.group(2)) == len(names["held_out"]) == 114
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert names["job"].on_chain == "settled" and len(names["chosen"]) == 3
    assert m.ids[3] not in [one.id for one in names["chosen"]]  # a small lifetime is left alone


def test_notebook__as_committed__is_one_without_outputs_or_places() -> None:
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    assert set(BOOK) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in BOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", n) for n in ids)
    for cell in BOOK["cells"]:
        code = cell["cell_type"] == "code"
        assert code or cell["cell_type"] == "markdown"
        assert set(cell) == MUST | (OF_CODE if code else set())
        assert all(isinstance(line, str) for line in cell["source"])
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert not re.search(PLACES, "".join(cell["source"]))
    assert BOOK["metadata"]["kernelspec"]["name"] == "python3"


def test_notebook__is_linked_in_the_readme() -> None:
    assert f"]({FILE.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text()
