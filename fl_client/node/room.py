"""What a hospital's node has at hand while it runs: configuration, records, ledger, its own view of
the chain.

Knows nothing of what is admitted (admission.py) or done with an admitted job (rounds.py).
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import Chain
from datatokens.public_ledger import Watch
from datatokens.terms import DatasetTerm, JobTerms
from fl_client.data.tables import Records
from fl_client.errors import DatasetError, LedgerRefusal
from fl_client.model.graph import GraphModel
from fl_client.node import entries, reconcile
from fl_client.node.config import NodeConfig
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import JobFolder
from fl_client.node.served import open_ledger, read_table, register
from fl_client.protocol import JobSpec

log = logging.getLogger("datahub.node")

IDLE_S = 3600  # a job that no round was asked of for so long holds no reservation


@dataclass(frozen=True)
class AdmittedJob:
    """A job that passed every check, with what its rounds need."""

    terms: JobTerms
    spec: JobSpec
    entry: DatasetEntry
    model: GraphModel

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.terms.job_id.hex()


class DataRoom:
    """One hospital's node, its datasets loaded. A dataset that cannot be used is in `skipped` (its
    number or file -> why), and the others are served.
    """

    def __init__(self, config: NodeConfig, chain: Chain):
        """Load every dataset and have the ledger know who is in it. Raises ConfigError or
        LedgerError where nothing can be served at all.
        """
        self.config = config
        self.chain = chain
        self.escrow = Escrow(chain, config.market)
        self.registry = Registry(chain, config.registry)
        self.ledger, self._secret = open_ledger(config.folder)
        self._keys = config.node_keys
        self.stopping = threading.Event()  # set from outside: work under way ends at its next step
        self.jobs: dict[str, AdmittedJob] = {}  # admitted ones that rounds.py has loaded
        self.records: dict[int, Records] = {}  # without those who have withdrawn
        self.skipped: dict[str, str] = {}
        self._entries: dict[int, DatasetEntry] = {}
        self._tables: dict[int, Records] = {}  # with them
        self._seen: object = None
        self._agreed: dict[int, object] = {}
        self._watch = Watch(
            chain, config.market, min((entry.since for entry in config.datasets), default=0)
        )
        self.refresh()
        self.check_evidence()
        self.free_overdue()

    def check_evidence(self) -> None:
        """Raises LedgerError where the chain has seen more of a dataset than the ledger knows, and
        BankError where the chain cannot be read.
        """
        listed = [*entries.read(self.config.folder)[0], *entries.removed(self.config.folder)]
        # what agreed once agrees: the ledger forgets nothing while its mark is the counter's
        new = {i: h for i, h in self._watch.look().items() if self._agreed.get(i) != h}
        reconcile.check(self.ledger, listed, new)
        self._agreed |= new

    def refresh(self) -> None:
        """Take in what has been listed, replaced, removed or withdrawn since the last look. Raises
        LedgerError where the ledger cannot be used now, or is another than was written last.
        """
        self.ledger.file.check()
        if entries.stamps(self.config.folder) == self._seen:
            return
        seen = entries.stamps(self.config.folder)
        found, unusable = entries.read(self.config.folder)
        served: dict[int, DatasetEntry] = {}
        skipped = dict(unusable)
        for entry in found:
            try:
                served[entry.dataset_id] = self._taken_in(entry)
            except (DatasetError, LedgerRefusal) as error:
                skipped[str(entry.dataset_id)] = f"dataset {entry.dataset_id}: {error}"
        self._entries, self.skipped = served, skipped
        for gone in set(self._tables) - set(self._entries):
            del self._tables[gone]
            self.records.pop(gone, None)
        self.jobs.clear()
        self._seen = seen
        for sentence in self.skipped.values():
            log.warning("not served: %s", sentence)

    def _taken_in(self, entry: DatasetEntry) -> DatasetEntry:
        before = self._entries.get(entry.dataset_id)
        if self.registry.standing(entry.dataset_id).state is State.RETIRED:
            raise DatasetError("it is retired; datahub node remove-dataset takes it off the list")
        unchanged = before is not None and (before.source, before.content, before.manifest) == (
            entry.source,
            entry.content,
            entry.manifest,
        )
        table = self._tables.get(entry.dataset_id) if unchanged else None
        if table is None:
            table = read_table(self.config.folder, entry, self._secret)
        entry = register(self.config.folder, self.ledger, entry, table)
        self._tables[entry.dataset_id] = table
        self.records[entry.dataset_id] = table.without(entry.withdrawn_keys)
        return entry

    def dataset(self, dataset_id: int) -> DatasetEntry | None:
        """The dataset with this id as it is now, if this node serves it."""
        return self._entries.get(dataset_id)

    @property
    def datasets(self) -> list[DatasetEntry]:
        """What is served."""
        return list(self._entries.values())

    def line(self, terms: JobTerms) -> DatasetTerm:
        """The job's line that is ours: the one that names one of our keys. Raises TermsError if
        none does.
        """
        ours = [node for node in (line.node for line in terms.datasets) if node in self._keys]
        return terms.datasets[terms.index_of_node(ours[0] if ours else next(iter(self._keys)))]

    def key(self, terms: JobTerms) -> bytes:
        """The key that signs for this job: the one that its line names. Raises TermsError."""
        return self._keys[self.line(terms).node]

    def folder(self, job_id: str) -> JobFolder:
        """What is kept of a job. Raises ProtocolError for an id that is none."""
        return JobFolder(self.config.folder, job_id)

    def free_overdue(self) -> None:
        """Free what jobs past their deadline had reserved and never ran, since their money has gone
        back by now, and what jobs hold that nobody has asked a round of for an hour.
        """
        now = self.chain.now()
        for job_id in self.ledger.open_jobs():
            terms = JobFolder(self.config.folder, job_id).terms
            if terms is not None and terms.deadline < now:
                self.ledger.close_job(job_id)
        self.ledger.free_idle(time.time() - IDLE_S)
