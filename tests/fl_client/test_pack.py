"""A job's papers say what happened, and what nobody has filled in."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from datahub.cli import app
from fl_client.errors import ConfigError
from fl_client.node import config
from fl_client.node.audit_log import AuditLog, LogError
from fl_client.node.rounds import train
from fl_client.office.pack import ASKED, pack
from tests.clinic import Clinic, accepted, weights
from tests.fl_client.test_audit_log import attested


def test_pack__of_a_whole_job__is_what_the_log_and_the_report_say(
    clinic: Clinic, tmp_path: Path
) -> None:
    job = attested(clinic)
    facts = pack(config.read(clinic.folder), job[:10])
    report = (clinic.folder / "jobs" / job / "report.json").read_bytes()
    line = json.loads(report)["hospitals"][0]
    assert facts["privacy"]["epsilon_job"] == line["epsilon_job"] > 0
    assert facts["decision"]["by"] == "rule everybody"
    assert facts["decision"]["policy_at_the_time"]["max_epsilon_per_job"] == 4.5
    assert [one["what"] for one in facts["left_the_house"]] == ["round 1", "round 2"]
    assert facts["result"]["report_hash"] == hashlib.sha256(report).hexdigest()
    assert facts["result"]["on_chain"] == "the chain has no attestation of it"
    assert facts["audit_log"]["head"] == AuditLog(clinic.folder).head.hash
    assert {one["name"] for one in facts["software"]} >= {"datahub", "flwr", "torch"}
    assert all(not one["said"] for one in facts["asked_of_the_owner"].values())
    file = tmp_path / "pack.html"
    words = ["node", "compliance-pack", str(clinic.folder), job, "--out", str(file)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "not filled in: controller" in done.output
    html = file.read_text()
    assert html.count("not filled in") == len(ASKED) and job in html
    assert not re.search(r'(src|href)="', html), "one file, nothing from elsewhere"
    printed = CliRunner().invoke(
        app, ["node", "compliance-pack", str(clinic.folder), job, "--json"]
    )
    assert json.loads(printed.output)["job_id"] == job


def test_pack__what_the_owner_has_written__is_in_it_and_a_slip_is_named(clinic: Clinic) -> None:
    job = accepted(clinic, rounds=1).job_id.hex()
    train(clinic.room(), job, 1, weights())
    words = clinic.folder / "compliance.toml"
    words.write_text('controller = "St. Anna <b>"\n')
    facts = pack(config.read(clinic.folder), job)
    assert facts["asked_of_the_owner"]["controller"]["said"] == "St. Anna <b>"
    assert facts["result"]["on_chain"] == "this node has signed no result of it"
    words.write_text('controler = "x"\n')
    with pytest.raises(ConfigError, match="controler is unknown; known are controller"):
        pack(config.read(clinic.folder), job)


def test_pack__job_that_is_not_here_or_a_log_that_does_not_hold__is_refused(
    clinic: Clinic,
) -> None:
    with pytest.raises(ConfigError, match="0 jobs of this node begin so"):
        pack(config.read(clinic.folder), "ab" * 32)
    job = accepted(clinic, rounds=1).job_id.hex()
    path = AuditLog(clinic.folder).path
    path.write_bytes(path.read_bytes().replace(b'"buyer"', b'"bayer"', 1))
    with pytest.raises(LogError):
        pack(config.read(clinic.folder), job)
