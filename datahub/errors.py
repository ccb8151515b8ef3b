"""What the front desk refuses. Each maps to one HTTP status and one exit code, in web/api.py and
cli.py only.

* HubError
  - NotFound        404  no such dataset, node or job
  - Forbidden       403  not signed in, or asked for by another site's page
  - BadRequest      422  a field is missing, unknown or out of range
  - Conflict        409  the thing is in another state than the call needs
  - Busy            429  too much of the kind at once; ask again
  - ConfigError     -    hub.toml is wrong; all problems in one sentence
  - OrderRefused    -    the buyer's own check of a quote failed: nothing was paid
    + NotSettled    -    exit code 3: the job is still under way; ask again later
    + Refunded      -    exit code 4: the job has ended without a model; its money is back
"""


class HubError(Exception):
    """Anything that this room refuses; the message is one sentence."""

    status = 400
    exit_code = 1


class NotFound(HubError):
    """No such thing."""

    status = 404


class Forbidden(HubError):
    """Not signed in, or asked for by another site's page."""

    status = 403


class BadRequest(HubError):
    """A field is missing, unknown or out of range."""

    status = 422


class Conflict(HubError):
    """The thing is in another state than the call needs."""

    status = 409


class Busy(HubError):
    """Too much of the kind at once."""

    status = 429


class ConfigError(HubError):
    """The hub's configuration is wrong."""


class OrderRefused(HubError):
    """The quote is not what was asked for; nothing was paid."""


class NotSettled(OrderRefused):
    """The job is still under way: what is asked for is there once it has settled."""

    exit_code = 3


class Refunded(OrderRefused):
    """The job has ended without a model, and its money is back in the wallet."""

    exit_code = 4
