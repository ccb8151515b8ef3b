"""What a ledger lacks, by what the chain and the node's own folder know, and charging it.

A ledger that was put back from a backup is older than what it should know. The chain has seen which
jobs this node accepted and what it attested; the folder has the jobs that were accepted here, and
the counter. Whatever cannot be told is charged at its worst case: a job as a whole, to everybody
whom its dataset ever held. Knows nothing of how jobs are admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from datatokens.public_ledger import History
from datatokens.terms import JobTerms
from fl_client.data.tables import Records
from fl_client.errors import LedgerError
from fl_client.node.config import NodeConfig
from fl_client.node.entries import DatasetEntry, removed
from fl_client.node.job_folder import job_folders
from fl_client.node.served import members_of, register
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import COUNT_NOISE
from fl_client.protocol import JobSpec, Signed

MICRO = 10**6
COUNT = "released count"
HOW = "charge the difference first: datahub node reconcile FOLDER"


@dataclass(frozen=True)
class Charged:
    """Something that was charged afterwards: to which dataset, for what, epsilon of its patients
    before and after.
    """

    dataset_id: int
    what: str
    epsilon_before: float
    epsilon_after: float


def check(ledger: Ledger, entries: Sequence[DatasetEntry], seen: Mapping[int, History]) -> None:
    """Raises LedgerError where the chain knows more of one of these datasets than the ledger."""
    for entry in entries:
        history = seen.get(entry.dataset_id)
        if history is None:
            continue
        if unknown := [job for job in history.accepted if not ledger.knows(job.hex())]:
            raise LedgerError(
                f"the chain has seen this node accept {len(unknown)} jobs of dataset "
                f"{entry.dataset_id} that its ledger does not know; {HOW}"
            )
        attested = history.epsilon_micro
        names = {entry.name, entry.patient_set} & set(ledger.datasets())
        known = max((ledger.epsilon_spent(name) for name in names), default=0.0)
        if attested > _micro(known) + 1:
            raise LedgerError(
                f"the chain has seen dataset {entry.dataset_id} at a lifetime epsilon of "
                f"{attested / MICRO:.6f}, its ledger says {known:.6f}; {HOW}"
            )


def reconcile(
    config: NodeConfig,
    ledger: Ledger,
    tables: Mapping[int, Records],
    seen: Mapping[int, History],
    versions: Mapping[int, int],
    terms_of: Callable[[str], JobTerms | None],
) -> list[Charged]:
    """Charge what the ledger lacks at its worst case and make it the one to go on with; what was
    charged. Nothing where nothing is lacking.

    `tables` are the datasets' tables; `versions` how many manifests the chain has seen of each, in
    which a count was released; `terms_of` finds the terms of a job that the folder has not.
    A job whose terms nobody has costs all that was left of its dataset's budget. Raises LedgerError
    for a dataset that the ledger lacks and that has no table here.
    """
    charged: list[Charged] = []
    off = [e for e in removed(config.folder) if e.name in ledger.datasets()]
    listed = [*config.datasets, *off]
    if not ledger.file.behind() and not _behind(ledger, listed, seen):
        return charged
    nothing = History((), ())
    with ledger.file.mending():
        for entry in config.datasets:
            table, version = tables.get(entry.dataset_id), versions.get(entry.dataset_id, 1)
            charged += _dataset(config, ledger, entry, table, version)
        for entry in listed:  # those that it knows may have gone on after the copy
            names = {entry.name, entry.patient_set} & set(ledger.datasets())
            for job in [job for name in sorted(names) for job in ledger.jobs(name)]:
                before = ledger.epsilon_spent(entry.name)
                if ledger.forfeit(job.job_id):
                    what = f"all that was left of job {job.job_id[:12]}"
                    charged.append(_since(ledger, entry, what, before))
        lost: dict[str, tuple[DatasetEntry, JobTerms | None]] = {}
        for entry in listed:
            for accepted in seen.get(entry.dataset_id, nothing).accepted:
                lost[accepted.hex()] = entry, None
        known = {entry.dataset_id: entry for entry in listed}
        for folder in job_folders(config.folder):  # accepted here, maybe never put on the chain
            terms = folder.terms if isinstance(folder.answer, Signed) else None
            for line in terms.datasets if terms else ():
                if line.dataset_id in known:
                    lost[folder.path.name] = known[line.dataset_id], terms
        for job_id, (entry, terms) in lost.items():
            if not ledger.knows(job_id):
                charged.append(_lost(ledger, entry, job_id, terms or terms_of(job_id)))
        for entry in listed:
            attested = seen.get(entry.dataset_id, nothing).epsilon_micro
            before = ledger.epsilon_spent(entry.name)
            if attested > _micro(before) + 1:
                what = "what the chain has seen attested"
                ledger.top_up(entry.name, attested / MICRO, what)
                charged.append(_since(ledger, entry, what, before))
    return charged


def _dataset(
    config: NodeConfig, ledger: Ledger, entry: DatasetEntry, table: Records | None, version: int
) -> list[Charged]:
    """Have the ledger know a listed dataset as it is now, with the counts that were released."""
    known = entry.name in ledger.datasets()
    before = ledger.epsilon_spent(entry.name) if known else 0.0
    if table is not None:
        if entry.patient_set:
            ledger.inherit(entry.patient_set, members_of(table))
        register(config.folder, ledger, entry, table)
    elif not known:
        raise LedgerError(
            f"dataset {entry.dataset_id}: the ledger does not know who is in it, and its table "
            "cannot be read; put the table back, or take the dataset off: datahub node "
            "remove-dataset"
        )
    names = {entry.name, entry.patient_set} & set(ledger.datasets())
    history = [charge for name in names for charge in ledger.history(name)]
    lacking = version - sum(charge.steps for charge in history if charge.what == COUNT)
    if lacking <= 0:
        return []
    count = Charge(COUNT_NOISE, 1.0, lacking, COUNT)
    # whoever was left out was counted, too
    counted = table and members_of(table).lacking and members_of(table).counted
    ledger.charge(entry.name, count, even_over=True, members=counted or None)
    return [_since(ledger, entry, f"{lacking} released counts", before)]


def _lost(ledger: Ledger, entry: DatasetEntry, job_id: str, terms: JobTerms | None) -> Charged:
    before = ledger.epsilon_spent(entry.name)
    if terms is None:
        limit = ledger.budget(entry.name).epsilon
        what = f"job {job_id[:12]}, whose terms nobody has: all that was left of the budget"
        ledger.top_up(entry.name, limit, f"job {job_id}")
        ledger.charge_lost(entry.name, job_id, [])
    else:
        what = f"job {job_id[:12]} as a whole"
        ledger.charge_lost(entry.name, job_id, JobSpec.from_dict(terms.spec).plan.charges())
    return _since(ledger, entry, what, before)


def _since(ledger: Ledger, entry: DatasetEntry, what: str, before: float) -> Charged:
    return Charged(entry.dataset_id, what, before, ledger.epsilon_spent(entry.name))


def _behind(ledger: Ledger, entries: Sequence[DatasetEntry], seen: Mapping[int, History]) -> bool:
    try:
        check(ledger, entries, seen)
    except LedgerError:
        return True
    return False


def _micro(epsilon: float) -> int:
    return int(Fraction(epsilon) * MICRO)
