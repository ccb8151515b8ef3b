"""Once, a ledger that was put back from a backup answered the same round again, for another input
and with fresh noise: ten restores, ten answers, and the chain's ledger was green.
"""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.public_ledger import History, Watch, misfit
from datatokens.terms import JobTerms
from fl_client.errors import LedgerError
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.node import config, entries
from fl_client.node.admission import NOT_NOW, admit
from fl_client.node.job_folder import JobFolder
from fl_client.node.listing import terms_from
from fl_client.node.reconcile import Charged, reconcile
from fl_client.node.rounds import attest, train
from fl_client.node.served import members_of, open_ledger, read_table
from fl_client.node.versions import replace_dataset
from fl_client.privacy.accounting import lifetime_epsilon
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge
from fl_client.protocol import JobSpec, Refused, Signed
from fl_server.report import Round
from fl_server.report import build as build_report
from fl_server.settlement import accept, settle
from tests.clinic import GRAPH, WEIGHTS, Clinic, accepted, part_of, weights
from tests.fl_client.test_ledger import patients


def copy_of(ledger: Path, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        db.execute("VACUUM INTO ?", (str(to),))


def put_back(ledger: Path, backup: Path, counter: bool = False) -> None:
    for pattern in ("ledger.sqlite*", "ledger.counter") if counter else ("ledger.sqlite*",):
        for path in ledger.parent.glob(pattern):
            path.unlink()
    if backup.exists():
        ledger.write_bytes(backup.read_bytes())
    kept = backup.with_suffix(".counter")
    if counter and kept.exists():
        (ledger.parent / "ledger.counter").write_bytes(kept.read_bytes())


def keep(ledger: Path, to: Path) -> None:
    """A copy of ledger and counter, as a snapshot of the machine takes it."""
    copy_of(ledger, to)
    to.with_suffix(".counter").write_bytes((ledger.parent / "ledger.counter").read_bytes())


def test_restored_ledger__ten_times__answers_the_round_once(tmp_path: Path) -> None:
    path, backup = tmp_path / "ledger.sqlite", tmp_path / "backup"
    ledger = Ledger(path)
    ledger.open_dataset("s", 4.0, 1e-5)
    ledger.set_members("s", patients("p"))
    job = [Charge(1.5, 1.0, 1, "training")]
    ledger.reserve("s", "a" * 64, job)
    copy_of(path, backup)
    answered = []
    for day in range(10):
        with contextlib.suppress(LedgerError):
            ledger.begin_round("a" * 64, 1, bytes([day]), job)
            ledger.finish_round("a" * 64, 1, b"reply")
            answered.append(day)
        put_back(path, backup)
        ledger = Ledger(path)
    assert answered == [0]


def seen(clinic: Clinic) -> dict:
    return Watch(connect(clinic.url), clinic.made.market).look()


def mend(clinic: Clinic) -> list[Charged]:
    node = config.read(clinic.folder)
    ledger, secret = open_ledger(clinic.folder, mend=True)
    tables = {entry.dataset_id: read_table(clinic.folder, entry, secret) for entry in node.datasets}
    registry = Registry(connect(clinic.url), clinic.made.registry)
    versions = {i: registry.standing(i).version - 1 for i in tables}  # the first was not noised
    return reconcile(
        node, ledger, tables, seen(clinic), versions, lambda job: terms_from(node.hub, job)
    )


def put_on_chain(clinic: Clinic, terms: JobTerms) -> None:
    answer = JobFolder(clinic.folder, terms.job_id.hex()).answer
    assert isinstance(answer, Signed)
    escrow = Escrow(connect(clinic.url, accounts()[0][1]), clinic.made.market)
    accept(escrow, terms, {clinic.node: answer.signature.hex()})


def settled(clinic: Clinic) -> JobTerms:
    terms = accepted(clinic)
    settle_job(clinic, terms)
    return terms


def settle_job(clinic: Clinic, terms: JobTerms) -> None:
    spec, job, arrays = JobSpec.from_dict(terms.spec), terms.job_id.hex(), weights()
    for number in range(1, spec.rounds + 1):
        reply = train(clinic.room(), job, number, arrays)
        arrays = from_safetensors(reply.model)
    part = part_of(clinic, spec.rounds, reply, spec.rounds * reply.compute_seconds)
    rounds = [Round(i + 1, 0.7, 0.1) for i in range(spec.rounds)]
    report, worked = build_report(
        terms, spec, model_hash(arrays), rounds, {clinic.dataset_id: part}
    )
    answer = attest(clinic.room(), job, arrays, report)
    put_on_chain(clinic, terms)
    outcome = {
        "model_hash": model_hash(arrays).hex(),
        "worked": worked,
        "signatures": {clinic.node: answer.signature.hex()},
    }
    escrow = Escrow(connect(clinic.url, accounts()[0][1]), clinic.made.market)
    settle(escrow, terms, outcome, report)


def test_ledger_put_back__node_serves_nothing_until_the_difference_is_charged_at_its_worst(
    clinic: Clinic, tmp_path: Path
) -> None:
    path, backup = clinic.folder / "ledger.sqlite", tmp_path / "backup"
    terms = accepted(clinic)
    job, spec = terms.job_id.hex(), JobSpec.from_dict(terms.spec)
    copy_of(path, backup)
    late = accepted(clinic)  # after the backup; only its folder knows
    train(clinic.room(), job, 1, weights())
    put_back(path, backup)
    with pytest.raises(LedgerError, match="datahub node reconcile FOLDER"):
        clinic.room()
    charged = mend(clinic)
    assert [one.what for one in charged] == [
        f"all that was left of job {job[:12]}",
        f"job {late.job_id.hex()[:12]} as a whole",
    ]
    room = clinic.room()
    whole = [*spec.plan.charges(), *JobSpec.from_dict(late.spec).plan.charges()]
    order = room.ledger.budget("t").order
    assert room.ledger.epsilon_spent("t") == pytest.approx(lifetime_epsilon(whole, 1e-5, order))
    with pytest.raises(LedgerError, match="is closed"):
        train(room, job, 1, {name: array + 1 for name, array in weights().items()})
    assert mend(clinic) == [], "nothing is lacking any more"


@pytest.mark.parametrize("backup", ["from before the job", "lost"])
def test_whole_folder_put_back__the_chain_knows_better(
    clinic: Clinic, tmp_path: Path, backup: str
) -> None:
    """The counter is as old as the ledger; the job's folder is gone as well; the hub does not
    answer: the job costs all that was left.
    """
    path, kept = clinic.folder / "ledger.sqlite", tmp_path / "backup"
    clinic.room()
    if backup != "lost":
        keep(path, kept)
    terms = settled(clinic)
    for file in (clinic.folder / "jobs" / terms.job_id.hex()).iterdir():
        file.unlink()
    (clinic.folder / "jobs" / terms.job_id.hex()).rmdir()
    put_back(path, kept, counter=True)
    with pytest.raises(LedgerError, match=r"accept 1 jobs .* does not know; charge the difference"):
        clinic.room()
    charged = mend(clinic)
    assert "whose terms nobody has: all that was left of the budget" in charged[-1].what
    room = clinic.room()
    assert room.ledger.epsilon_spent("t") >= room.ledger.budget("t").epsilon
    answer = admit(room, clinic.paid().to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and "lifetime budget" in answer.reason


def test_whole_folder_put_back__job_is_known_but_not_what_it_spent__is_charged_all_the_same(
    clinic: Clinic, tmp_path: Path
) -> None:
    path, kept = clinic.folder / "ledger.sqlite", tmp_path / "backup"
    terms = accepted(clinic)
    keep(path, kept)
    settle_job(clinic, terms)
    figure = seen(clinic)[clinic.dataset_id].epsilon_micro
    put_back(path, kept, counter=True)
    with pytest.raises(LedgerError, match=r"at a lifetime epsilon of .* its ledger says 0\.000000"):
        clinic.room()
    assert [one.what for one in mend(clinic)] == [
        f"all that was left of job {terms.job_id.hex()[:12]}"
    ]
    assert figure <= clinic.room().ledger.epsilon_spent("t") * 10**6 + 1


def test_ledger_put_back__table_replaced_and_a_patient_withdrawn_since__the_count_is_charged(
    clinic: Clinic, hub_calls: list, tmp_path: Path
) -> None:
    path, backup = clinic.folder / "ledger.sqlite", tmp_path / "backup"
    node, owner = config.read(clinic.folder), accounts()[1][1]
    (entry,) = node.datasets
    clinic.room()
    copy_of(path, backup)
    more = tmp_path / "more.csv"
    more.write_text(entry.source.file.read_text() + "\n1,1,1")
    replace_dataset(node, owner, clinic.dataset_id, more)
    before = clinic.room().ledger.epsilon_spent("t")
    table = read_table(
        clinic.folder, config.read(clinic.folder).datasets[0], open_ledger(clinic.folder)[1]
    )
    gone = members_of(table).units[-1].hex()
    entries.update(clinic.folder, clinic.dataset_id, withdrawn=(gone,))
    put_back(path, backup)
    assert [one.what for one in mend(clinic)] == ["1 released counts"]
    assert clinic.room().ledger.epsilon_spent("t") >= before * (1 - 1e-9)
    assert clinic.room().records[clinic.dataset_id].persons == 40


def test_admission__ledger_put_back_while_the_node_runs__is_no_answer_and_not_remembered(
    clinic: Clinic, tmp_path: Path
) -> None:
    path, backup = clinic.folder / "ledger.sqlite", tmp_path / "backup"
    room = clinic.room()
    copy_of(path, backup)
    accepted(clinic)
    put_back(path, backup)
    terms = clinic.paid()
    assert admit(room, terms.to_json(), GRAPH, WEIGHTS) == Refused(NOT_NOW)
    mend(clinic)
    assert isinstance(admit(room, terms.to_json(), GRAPH, WEIGHTS), Signed)


def test_public_ledger__jobs_of_a_node_that_forgets_after_each__do_not_fit(
    clinic: Clinic,
) -> None:
    settled(clinic)
    settled(clinic)
    history = seen(clinic)[clinic.dataset_id]
    assert misfit(history) == "", "an honest node's figures grow"
    first, second = history.attested
    forgot = replace(second, epsilon_micro=first.epsilon_micro)
    assert "that does not pay for it" in misfit(History(history.accepted, (first, forgot)))
