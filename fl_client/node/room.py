"""What a hospital's node has at hand while it runs: configuration, records, ledger, its own view of
the chain.

Knows nothing of what is admitted (admission.py) or done with an admitted job (rounds.py).
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from datatokens.bindings.escrow import Escrow, Status
from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import Chain
from datatokens.errors import BankError
from datatokens.public_ledger import Watch
from datatokens.terms import DatasetTerm, JobTerms
from fl_client.data.tables import Records
from fl_client.errors import ConfigError, DatasetError, JobDamaged, LedgerRefusal, NodeError
from fl_client.node import entries, reconcile, witness
from fl_client.node.config import NodeConfig, changed
from fl_client.node.config import read as read_config
from fl_client.node.entries import DatasetEntry
from fl_client.node.inbox import waiting
from fl_client.node.job_folder import JobFolder
from fl_client.node.notices import tell
from fl_client.node.served import (
    look_at_source,
    open_ledger,
    open_log,
    prune,
    prune_pictures,
    read_table,
    register,
)
from fl_client.protocol import JobSpec, Waiting
from fl_client.worker.workers import Facts, Job, Workers

log = logging.getLogger("datahub.node")

IDLE_S = 3600  # a job that no round was asked of for so long holds no reservation
LOOK_AT_INBOX_S = 60.0  # whether its jobs are still paid for
LOOK_EVERY_S = 3600.0  # at sources, by the clock alone: never because of a job


@dataclass(frozen=True)
class AdmittedJob:
    """A job that passed every check, with what its rounds need."""

    terms: JobTerms
    spec: JobSpec
    entry: DatasetEntry
    model: Facts
    work: Job

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
        self.log = open_log(config, self.ledger)
        self.log.note("started")
        self.stopping = threading.Event()  # set from outside: work under way is ended
        self.workers = Workers()
        self.jobs: dict[str, AdmittedJob] = {}  # admitted ones that rounds.py has loaded
        self.records: dict[int, Records] = {}  # without those who have withdrawn
        self.skipped: dict[str, str] = {}
        self._entries: dict[int, DatasetEntry] = {}
        self._tables: dict[int, Records] = {}  # with them
        self._changed: dict[int, str] = {}  # datasets whose source is another than was listed
        self._looking: threading.Thread | None = None
        self._looked = threading.Event()  # a look has found something else than the last one
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._next_inbox = 0.0
        self._seen: object = None
        self._policy_stamp = entries.stamp_of(config.folder / "node.toml")
        self._agreed: dict[int, object] = {}
        self._watch = Watch(
            chain, config.market, min((entry.since for entry in config.datasets), default=0)
        )
        self.refresh()
        self.check_evidence()
        self.free_overdue()

    def check_evidence(self) -> None:
        """Raises LedgerError where the chain has seen more of a dataset than the ledger knows,
        LogError where it has seen this node sign what the log does not know of, and BankError
        where the chain cannot be read.
        """
        listed = [*entries.read(self.config.folder)[0], *entries.removed(self.config.folder)]
        # what agreed once agrees: the ledger forgets nothing while its mark is the counter's
        new = {i: h for i, h in self._watch.look().items() if self._agreed.get(i) != h}
        reconcile.check(self.ledger, listed, new)
        if reports := witness.on_chain(listed, new):
            witness.check(self.log, reports)
        self._agreed |= new

    def refresh(self) -> None:
        """Take in what has been listed, replaced, removed or withdrawn since the last look. Raises
        LedgerError where the ledger cannot be used now, or is another than was written last.
        """
        self.ledger.file.check()
        self.log.check()
        self._take_in_policy()
        if entries.stamps(self.config.folder) == self._seen and not self._looked.is_set():
            return
        self._looked.clear()  # what a look finds from here on is for the next time
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
        prune(self.config.folder)
        prune_pictures(self.config.folder)
        for sentence in self.skipped.values():
            log.warning("not served: %s", sentence)

    def _take_in_policy(self) -> None:
        """The owner's rules as they are written now; what is broken changes nothing."""
        stamp = entries.stamp_of(self.config.folder / "node.toml")
        if stamp == self._policy_stamp:
            return
        self._policy_stamp = stamp
        try:
            new = read_config(self.config.folder)
        except (ConfigError, OSError) as error:
            log.error("the policy stays as it was: %s", error)
            return
        changes = changed(self.config, new)
        self.config = replace(
            self.config,
            policy=new.policy,
            policies=new.policies,
            rules=new.rules,
            notify=new.notify,
        )
        for sentence in changes:
            log.warning("policy: %s", sentence)
        if changes:
            self.log.note("policy", changes=[sentence[:500] for sentence in changes[:50]])

    def cohort_of(self, entry: DatasetEntry) -> str:
        """A name of a dataset's version for the log. Keyed: with a plain hash of the table whoever
        reads an export could try out what they think is in it.
        """
        name = f"{entry.snapshot} {entry.reading} {len(entry.withdrawn)}"
        return hmac.new(self._secret, name.encode(), "sha256").hexdigest()[:16]

    def tell_people(self, terms: JobTerms, waits: Waiting) -> None:
        """That a job waits, to whoever the owner has named; in the background."""
        tell(self.config, terms, waits)

    def _taken_in(self, entry: DatasetEntry) -> DatasetEntry:
        before = self._entries.get(entry.dataset_id)
        if self.registry.standing(entry.dataset_id).state is State.RETIRED:
            raise DatasetError("it is retired; datahub node remove-dataset takes it off the list")
        same = before is not None and _version(before) == _version(entry)
        frozen = before is not None and _frozen(before) == _frozen(entry)
        table = self._tables.get(entry.dataset_id) if same and frozen else None
        if table is None:
            table = read_table(self.config.folder, entry, self._secret)
        if not same:
            self._look_at(entry)
        if why := self._changed.get(entry.dataset_id):
            raise DatasetError(why)
        entry = register(self.config.folder, self.ledger, entry, table)
        self._tables[entry.dataset_id] = table
        self.records[entry.dataset_id] = table.without(entry.withdrawn_keys)
        return entry

    def look_at_sources(self) -> None:
        """Once an hour, look whether the sources still are what was listed, in a thread of its own;
        what has changed is served no more from the next message on.
        """
        if time.monotonic() < self._next_look or (self._looking and self._looking.is_alive()):
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def _look(self) -> None:
        before = dict(self._changed)
        for entry in entries.read(self.config.folder)[0]:
            with suppress(ConfigError):  # it was removed meanwhile
                self._look_at(entry)
        if self._changed != before:
            self._looked.set()  # they are taken in again
        prune(self.config.folder)
        prune_pictures(self.config.folder)

    def _look_at(self, entry: DatasetEntry) -> None:
        try:
            away = look_at_source(self.config.folder, entry, self._secret)
        except DatasetError as error:
            self._changed[entry.dataset_id] = str(error)
        else:
            self._changed.pop(entry.dataset_id, None)
            if away:
                log.warning("dataset %d is served as it was frozen: %s", entry.dataset_id, away)

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

    def clear_inbox(self) -> None:
        """Take jobs whose money is no longer held out of the inbox, a look at the chain each, and
        once in LOOK_AT_INBOX_S at the most. Trouble of this node's own ends nothing.
        """
        if time.monotonic() < self._next_inbox:
            return
        self._next_inbox = time.monotonic() + LOOK_AT_INBOX_S
        try:
            self._clear_inbox()
        except (NodeError, BankError, OSError) as error:
            log.warning("the inbox is looked at later: %s", error)

    def _clear_inbox(self) -> None:
        for one in waiting(self.config.folder):
            status = self.escrow.job(one.terms.job_id).status
            # a chain connection that is behind knows nothing of a job that was seen paid before
            if status not in (Status.FUNDED, Status.NONE):
                one.folder.keep_gone(f"the escrow no longer holds its money: it is {status}")
                self.log.note("gone", job=one.job_id, reason=str(status))

    def free_overdue(self) -> None:
        """Free what jobs past their deadline had reserved and never ran, since their money has gone
        back by now, and what jobs hold that nobody has asked a round of for an hour.
        """
        now = self.chain.now()
        for job_id in self.ledger.open_jobs():
            try:
                terms = JobFolder(self.config.folder, job_id).terms
            except JobDamaged as error:
                log.error("%s", error)
                continue  # it is free once nobody has asked for it for an hour
            if terms is not None and terms.deadline < now:
                self.ledger.close_job(job_id)
        self.ledger.free_idle(time.time() - IDLE_S)


def _version(entry: DatasetEntry) -> tuple[object, ...]:
    """What a dataset's source is looked at again for when it changes."""
    return entry.source, entry.content, entry.manifest


def _frozen(entry: DatasetEntry) -> tuple[object, ...]:
    """What its snapshot is read again for: a withdrawal may have been killed before it froze."""
    return entry.snapshot, entry.withdrawn
