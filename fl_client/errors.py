"""What a node refuses. Every message is one sentence for a person, which never quotes a record.

Only a `Refusal` may leave the node: it decides about a job, and its sentence holds no path, URL or
key. Everything else is the node's own trouble: it stays in the node's log, decides nothing, and may
be over in a minute.

* NodeError
  - ConfigError        node.toml or the node's folder is wrong
  - DatasetError       a table, schema or manifest cannot be used
    - SourceAway       ... since its file is gone, or its database does not answer
  - LedgerError        the ledger cannot be used as it is
    - LedgerRefusal    ... and a Refusal: the ledger's history forbids it
  - JobDamaged         a file that is kept of one job is not what was written
  - BackupError        a backup cannot be made, or cannot be put back
  - Stopping           the node is being stopped in the middle of its work
  - Refusal
    - PlanError        a privacy plan is out of range
    - PolicyRefusal    the owner's rules say no
    - BudgetExceeded   the lifetime epsilon does not suffice
    - GraphRefused     a model file is not safe to run
    - ProtocolError    a message or job is not what it should be
"""


class NodeError(Exception):
    """Anything that this room refuses."""


class ConfigError(NodeError):
    """node.toml or the node's folder is wrong."""


class DatasetError(NodeError):
    """A table, schema or manifest cannot be used."""


class SourceAway(DatasetError):
    """A table's file is gone, or its database does not answer the query."""


class JobDamaged(NodeError):
    """A file that is kept of one job is not what was written, or cannot be read: that job's trouble
    and no other's.
    """


class Stopping(NodeError):
    """The node is being stopped in the middle of its work."""


class BackupError(NodeError):
    """A backup cannot be made, or cannot be put back."""


class Refusal(NodeError):
    """A decision about a job, in a sentence that may leave the node."""


class PlanError(Refusal):
    """A privacy plan is out of range."""


class PolicyRefusal(Refusal):
    """The owner's rules say no."""


class BudgetExceeded(Refusal):
    """The lifetime epsilon does not suffice."""


class GraphRefused(Refusal):
    """A model file is not safe to run."""


class ProtocolError(Refusal):
    """A message or job is not what it should be."""


class LedgerError(NodeError):
    """The ledger cannot be used as it is: its file, a budget, who is in a dataset."""


class LedgerRefusal(LedgerError, Refusal):
    """The ledger was asked for something that its history forbids."""
