"""What a node refuses. Every message is one sentence that may be shown to the buyer: it never
quotes a record.

* NodeError
  - ConfigError      node.toml or the node's folder is wrong
  - DatasetError     a table, schema or manifest cannot be used
  - PlanError        a privacy plan is out of range
  - PolicyRefusal    the owner's rules say no
  - BudgetExceeded   the lifetime epsilon does not suffice
  - GraphRefused     a model file is not safe to run
  - ProtocolError    a message or job is not what it should be
  - LedgerError      the ledger was asked for something that its history forbids
"""


class NodeError(Exception):
    """Anything that this room refuses."""


class ConfigError(NodeError):
    """node.toml or the node's folder is wrong."""


class DatasetError(NodeError):
    """A table, schema or manifest cannot be used."""


class PlanError(NodeError):
    """A privacy plan is out of range."""


class PolicyRefusal(NodeError):
    """The owner's rules say no."""


class BudgetExceeded(NodeError):
    """The lifetime epsilon does not suffice."""


class GraphRefused(NodeError):
    """A model file is not safe to run."""


class ProtocolError(NodeError):
    """A message or job is not what it should be."""


class LedgerError(NodeError):
    """The ledger was asked for something that its history forbids."""
