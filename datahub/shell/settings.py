"""The settings of an order as flags: each field of Asked and Training is one flag of the shell, and
each setting of Market.quote is one of them (tests/datahub/test_order_flags.py compares the two).

Reads a model's own file where one is named; decides nothing of an order.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from datahub.errors import OrderRefused
from datatokens.terms import USUAL_DEADLINE_S, DisputeTerms

DISPUTE = ("dispute_arbiter", "dispute_window_s", "dispute_bond_units", "dispute_silent_bps")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What every order says."""

    dataset: Annotated[list[int], typer.Option(help="Dataset id; repeat for each.")]
    epsilon: Annotated[
        float, typer.Option(help="Most that the job may cost a patient of each hospital.")
    ]
    purpose: Annotated[str, typer.Option(help="What the model or the figures are for.")]
    purpose_code: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for as a code of the Data Use Ontology, like DUO:0000006, for "
            "hospitals that compare them; repeat for each."
        ),
    ] = None
    delta: Annotated[
        float | None, typer.Option(help="Delta; default min(1e-5, 1/(10 patients)).")
    ] = None
    voucher: Annotated[
        list[int] | None,
        typer.Option(
            help="Dataset id that is paid with one datatoken that you hold; repeat for each."
        ),
    ] = None
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET=TIER",
            help="Pay for a dataset by another tier than 0: its price, its datatoken with "
            "--voucher, or nothing while your access by it is open; repeat for each.",
        ),
    ] = None
    reward_units: Annotated[
        int, typer.Option(help="Reward pool, base units, split by patients.")
    ] = 0
    compute_minutes: Annotated[
        int,
        typer.Option(
            help="Minutes of metered compute to escrow for each hospital; what is not used comes "
            "back."
        ),
    ] = 10
    max_fee_units: Annotated[
        int | None, typer.Option(help="The most that the hub may take, base units.")
    ] = None
    quorum: Annotated[
        int | None, typer.Option(help="How many hospitals must finish; default all.")
    ] = None
    deadline_s: Annotated[
        int,
        typer.Option(
            help="Seconds until the money comes back if nothing was settled: 172800 are two days."
        ),
    ] = USUAL_DEADLINE_S
    answer_s: Annotated[
        int | None,
        typer.Option(
            help="Seconds that people at hospitals have for a yes or no; three quarters of "
            "--deadline-s if left out. Then the job goes on with those who have said yes."
        ),
    ] = None
    dispute_arbiter: Annotated[
        str,
        typer.Option(
            help="Address of an arbiter: payment then waits for a window in which the result may "
            "be disputed. The other --dispute flags go with it."
        ),
    ] = ""
    dispute_window_s: Annotated[
        int | None, typer.Option(help="Seconds between attestation and payment.")
    ] = None
    dispute_bond_units: Annotated[
        int | None, typer.Option(help="What a dispute costs who begins it, base units.")
    ] = None
    dispute_silent_bps: Annotated[
        int | None, typer.Option(help="What is paid if the arbiter says nothing, of 10000.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """As Market.quote and Market.ask take them. Raises OrderRefused."""
        return {
            "epsilon": self.epsilon,
            "purpose": self.purpose,
            "purpose_codes": self.purpose_code or (),
            "delta": self.delta,
            "vouchers": self.voucher or (),
            "tiers": dict(map(_tier, self.tier)) if self.tier else None,
            "reward_units": self.reward_units,
            "compute_minutes": self.compute_minutes,
            "max_fee_units": self.max_fee_units,
            "quorum": self.quorum,
            "deadline_s": self.deadline_s,
            "answer_s": self.answer_s,
            "dispute": self._dispute(),
        }

    def _dispute(self) -> DisputeTerms | None:
        given = {name: getattr(self, name) for name in DISPUTE}
        missing = [name for name, value in given.items() if value in (None, "")]
        if len(missing) == len(DISPUTE):
            return None
        if missing:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise OrderRefused(f"dispute terms are given whole or not at all; {flags} is missing")
        return DisputeTerms(**{name.removeprefix("dispute_"): x for name, x in given.items()})


@dataclass(frozen=True, kw_only=True)
class Training(Asked):
    """What an order of a model says besides."""

    model: Annotated[
        str,
        typer.Option(
            help="A built-in model, or FILE.py:NAME: a function of your file that makes a torch "
            "module."
        ),
    ] = "logistic_regression"
    example: Annotated[
        str,
        typer.Option(
            help="FILE.py:NAME: a function that makes an input to export your model with; default "
            "zeros in the shape of the dataset's inputs."
        ),
    ] = ""
    loss: Annotated[
        str | None, typer.Option(help="What is trained by; default the usual one of the target.")
    ] = None
    rounds: Annotated[
        int | None, typer.Option(help="Rounds; default 20 to 60, by patients and epsilon.")
    ] = None
    local_steps: Annotated[int | None, typer.Option(help="Steps at each hospital in a round.")] = (
        None
    )
    learning_rate: Annotated[float | None, typer.Option(help="Of a step at a hospital.")] = None
    clip_norm: Annotated[
        float | None, typer.Option(help="The most that one patient moves a step.")
    ] = None
    server_momentum: Annotated[
        float | None, typer.Option(help="Momentum over rounds, from 0 to below 1.")
    ] = None
    server_rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Another step size for one parameter of the model; repeat for each.",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """As Market.quote takes them. Runs the file that names a model of one's own. Raises
        OrderRefused.
        """
        own: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                *("loss", "rounds", "local_steps", "learning_rate", "clip_norm"),
                "server_momentum",
            )
        }
        own["model"] = made_by("--model", self.model) if ":" in self.model else self.model
        own["example"] = made_by("--example", self.example) if self.example else None
        own["server_rates"] = dict(map(_rate, self.server_rate)) if self.server_rate else None
        return super().settings() | own


def _tier(given: str) -> tuple[int, int]:
    dataset_id, _, tier = given.partition("=")
    try:
        return int(dataset_id), int(tier)
    except ValueError:
        raise OrderRefused(f"--tier {given!r:.60} must be DATASET=TIER, as in 3=1") from None


def _rate(given: str) -> tuple[str, float]:
    name, _, value = given.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise OrderRefused(
            f"--server-rate {given!r:.60} must be NAME=NUMBER, as in weight=0.5"
        ) from None


def made_by(flag: str, given: str) -> Any:
    """What the function in FILE.py:NAME makes: a module or a tensor, which who takes it checks. The
    file is the buyer's own and runs here alone: a model travels as data. Raises OrderRefused.
    """
    file, _, name = given.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name.isidentifier():
        raise OrderRefused(f"{flag} {given!r:.200} must be FILE.py:NAME, as in model.py:make_model")
    if not path.is_file():
        raise OrderRefused(f"{flag}: {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py there are
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, name, None)
        if callable(make):
            return make()
    except Exception as error:  # whatever the buyer's own code raises is said
        raise OrderRefused(f"{flag}: {path} ended in {type(error).__name__}: {error}") from error
    there = ", ".join(key for key, value in vars(module).items() if callable(value))[:200]
    raise OrderRefused(f"{flag}: {path} has no function {name!r}; it has {there or 'none'}")


def as_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each parameter that is a dataclass as one flag for each of its fields; its
    other parameters stay.
    """
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    packs = {name: kind for name, kind in hints.items() if hasattr(kind, "__dataclass_fields__")}
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in given.items():
        if name in packs:
            kinds |= get_type_hints(packs[name], include_extras=True)
            defaults |= {one.name: one.default for one in fields(packs[name])}
        else:
            kinds[name], defaults[name] = hints[name], parameter.default

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, kind in packs.items():
            mine = {one.name: values.pop(one.name) for one in fields(kind) if one.name in values}
            values[name] = kind(**mine)
        command(**values)

    missing = (MISSING, inspect.Parameter.empty)
    signature = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=kinds[name],
                default=inspect.Parameter.empty if default in missing else default,
            )
            for name, default in defaults.items()
        ]
    )
    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__annotations__ = {name: kinds[name] for name in defaults} | {"return": None}
    del called.__wrapped__  # its signature is another
    return called
