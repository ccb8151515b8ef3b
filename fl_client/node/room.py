"""What a hospital's node has at hand while it runs: configuration, records, ledger, its own view of
the chain.

Knows nothing of what is admitted (admission.py) or done with an admitted job (rounds.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.chain.connection import Chain
from datatokens.terms import DatasetTerm, JobTerms
from fl_client.data.tables import Records, load
from fl_client.errors import DatasetError
from fl_client.model.graph import GraphModel
from fl_client.node.config import DatasetEntry, NodeConfig
from fl_client.node.job_folder import JobFolder
from fl_client.privacy.ledger import Ledger
from fl_client.protocol import JobSpec


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
    """One hospital's node, its datasets loaded."""

    def __init__(self, config: NodeConfig, chain: Chain):
        """Load every dataset and check that it is still the one that was listed. Raises
        DatasetError.
        """
        self.config = config
        self.chain = chain
        self.escrow = Escrow(chain, config.market)
        self.registry = Registry(chain, config.registry)
        self.ledger = Ledger(config.folder / "ledger.sqlite")
        self._keys = config.node_keys
        self.jobs: dict[str, AdmittedJob] = {}  # admitted ones that rounds.py has loaded
        self.records: dict[int, Records] = {}
        for entry in config.datasets:
            records = load(entry.file, entry.manifest.schema, entry.patient_column)
            if records.patient_set != entry.patient_set:
                raise DatasetError(
                    f"dataset {entry.dataset_id}: {entry.file} has changed since it was listed; "
                    "list it as a new dataset"
                )
            self.records[entry.dataset_id] = records
            manifest = entry.manifest
            self.ledger.open_patient_set(
                entry.patient_set, manifest.lifetime_epsilon, manifest.delta
            )
        self.free_overdue()

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
        """Free what jobs past their deadline had reserved and never ran: their money has gone back
        by now.
        """
        now = self.chain.now()
        for entry in self.config.datasets:
            for line in self.ledger.jobs(entry.patient_set):
                if line.closed:
                    continue
                terms = self.folder(line.job_id).terms
                if terms is not None and terms.deadline < now:
                    self.ledger.close_job(line.job_id)
