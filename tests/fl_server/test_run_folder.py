"""The folder between hub and runs: what one side puts in, the other finds, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_server.errors import RunFailed
from fl_server.run_folder import RunFolder
from tests.conftest import spec, terms


def test_hand_over__then_a_run_opens_it__finds_everything(tmp_path: Path) -> None:
    job = terms()
    nodes = {line.node: 100 + i for i, line in enumerate(job.datasets)}
    RunFolder(tmp_path / "job").hand_over(job.to_json(), b"graph", b"weights", nodes)
    found = RunFolder(tmp_path / "job")
    assert (found.terms, found.spec, found.id) == (job, spec(), job.job_id.hex())
    assert (found.graph, found.weights) == (b"graph", b"weights")
    assert found.supernodes == {line.dataset_id: nodes[line.node] for line in job.datasets}


def test_folder__before_anything_is_there__says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "nothing")
    assert folder.events() == [] and folder.acceptances == {} and folder.outcome is None
    assert not folder.has_result and not folder.has_outcome_of(1)


def test_events__a_line_that_is_being_written__is_left_for_the_next_look(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.progress("started", hospitals=3)
    folder.progress("round", number=1)
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"event": "rou')
    assert [(e["event"], e.get("number")) for e in folder.events()] == [
        ("started", None),
        ("round", 1),
    ]


def test_finish__then_set_aside__makes_place_for_another_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish("failed", reason="silence")
    assert folder.outcome == {"state": "failed", "reason": "silence"}
    folder.set_outcome_aside(1)
    assert folder.outcome is None and folder.has_outcome_of(1)
    folder.finish("attested", worked=3)
    assert folder.outcome == {"state": "attested", "worked": 3}


@pytest.mark.parametrize("raw", ["", "[]", '{"state": "odd"}', "{"])
def test_outcome__that_no_run_writes__refused(tmp_path: Path, raw: str) -> None:
    (tmp_path / "outcome.json").write_text(raw)
    with pytest.raises(RunFailed, match="the run's outcome is not understood"):
        _ = RunFolder(tmp_path).outcome


def test_keep__acceptances_and_result__are_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep_acceptances({"0xab": "01"})
    folder.keep_result(b"report", b"sealed")
    assert folder.acceptances == {"0xab": "01"} and folder.has_result
    assert (folder.report, folder.sealed) == (b"report", b"sealed")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "acceptances.json",
        "report.json",
        "result.sealed",
    ]
