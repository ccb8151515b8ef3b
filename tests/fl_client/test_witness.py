"""A log that was put back together with everything around it: the chain has seen this node sign."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from datatokens.terms import JobTerms
from fl_client.node import audit_log, config, witness
from fl_client.node.audit_log import AuditLog, LogError
from fl_client.office.cli import node
from tests.clinic import Clinic, accepted
from tests.faults.test_ledger_rollback import seen, settle_job

LOG = (audit_log.LOG, audit_log.MARK)


def reconcile(clinic: Clinic, *more: str) -> Any:
    words = ["reconcile", str(clinic.folder), *more]
    done = CliRunner().invoke(node, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def settled_after_a_copy(clinic: Clinic, tmp_path: Path) -> JobTerms:
    """A job that was accepted before a copy of log and job's folder was put back, and settled
    before that; the ledger is as it was last.
    """
    terms, copy = accepted(clinic), tmp_path / "copy"
    shutil.copytree(clinic.folder, copy)
    settle_job(clinic, terms)
    for name in LOG:
        shutil.copy(copy / name, clinic.folder / name)
    shutil.rmtree(clinic.folder / "jobs")
    shutil.copytree(copy / "jobs", clinic.folder / "jobs")
    return terms


def test_log_put_back_with_its_mark_and_jobs__the_chain_has_this_nodes_signature(
    clinic: Clinic, tmp_path: Path
) -> None:
    terms = settled_after_a_copy(clinic, tmp_path)
    AuditLog(clinic.folder).verify()  # by itself it is whole
    job = terms.job_id.hex()
    with pytest.raises(LogError, match=rf"sign 1 reports .* {job[:12]} .*reconcile FOLDER"):
        clinic.room()
    assert "goes on" in reconcile(clinic)
    clinic.room()
    (line,) = [one for one in AuditLog(clinic.folder).lines() if one.event == "reconciled"]
    report = seen(clinic)[clinic.dataset_id].attested[-1].report_hash.hex()
    assert line.facts["lost"] == [[job, report]]
    assert json.loads(reconcile(clinic, "--json")) == []
    assert list(AuditLog(clinic.folder).lines())[-1].facts["lost"] == []


def test_whole_folder_put_back__ledger_and_log__says_so_once_for_each_and_serves_again(
    clinic: Clinic, tmp_path: Path
) -> None:
    terms, copy = accepted(clinic), tmp_path / "copy"
    shutil.copytree(clinic.folder, copy)
    settle_job(clinic, terms)
    shutil.rmtree(clinic.folder)
    shutil.copytree(copy, clinic.folder)
    with pytest.raises(Exception, match="datahub node reconcile FOLDER"):
        clinic.room()
    reconcile(clinic)
    clinic.room()
    last = [one for one in AuditLog(clinic.folder).lines() if one.event == "reconciled"][-1]
    assert len(last.facts["lost"]) == 1 and last.facts["charged"], "both are said"


def test_room__signed_by_it_and_in_its_log__serves(clinic: Clinic) -> None:
    terms = accepted(clinic)
    settle_job(clinic, terms)
    room = clinic.room()
    reports = witness.on_chain(room.datasets, seen(clinic))
    assert [job for job, _ in reports] == [terms.job_id.hex()]
    assert witness.lacking(room.log, reports) == []


def test_job_attested_by_a_version_without_a_log__is_not_asked_for(clinic: Clinic) -> None:
    terms = accepted(clinic)
    settle_job(clinic, terms)
    for name in LOG:
        (clinic.folder / name).unlink()
    (clinic.folder / "jobs" / terms.job_id.hex() / "report.json").unlink()
    log = AuditLog(clinic.folder)
    log.note("started")
    reports = witness.on_chain(config.read(clinic.folder).datasets, seen(clinic))
    assert witness.lacking(log, reports) == []
    attested = clinic.folder / "jobs" / terms.job_id.hex() / "attested.txt"
    attested.write_text(f"{'ab' * 32} {'cd' * 32}")
    assert [job for job, _ in witness.lacking(log, reports)] == [terms.job_id.hex()]


def test_reconciled__more_than_a_line_holds__is_said_in_several(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    lost = [(f"{i:064x}", f"{i:064x}") for i in range(250)]
    assert witness.lacking(log, lost) == sorted(lost)
    witness.reconciled(log, [{"what": "a job", "dataset_id": i} for i in range(120)], lost)
    assert witness.lacking(log, lost) == []
    assert log.verify().number == 3
    charged = [one for line in log.lines() for one in line.facts["charged"]]
    assert len(charged) == 120 and json.dumps(charged[0])
