"""What can go wrong around a run.

* TheatreError
  - SuperLinkError   the SuperLink refused or did not answer
  - RunFailed        a run ended without a result; the message says why
  - ResultError      a sealed result cannot be opened, or is not what the chain says
"""


class TheatreError(Exception):
    """Anything this room refuses; the message is one sentence."""


class SuperLinkError(TheatreError):
    """The SuperLink did not answer, or answered with an error."""


class RunFailed(TheatreError):
    """A run cannot go on; the message is shown to the buyer."""


class ResultError(TheatreError):
    """A result does not open with this key, or does not carry the model that was attested."""
