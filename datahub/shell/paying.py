"""What `order new` and `job resume` have in common: show a quote, pay it once a person says so,
follow the job to its end, save what it gave. Prints and asks; decides nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from datahub.errors import HubError, NotSettled, Refunded
from datahub.shell.options import complaints, console, many
from datatokens.errors import BankError
from datatokens.money import amount, money
from datatokens.wire import parse
from fl_client.errors import NodeError
from fl_server.errors import TheatreError

if TYPE_CHECKING:
    from datahub.buyer.jobs import Job
    from datahub.buyer.results import Result
    from datahub.buyer.sdk import Quote


def described(quote: Quote) -> list[str]:
    """What a person should read before paying."""
    terms = quote.terms
    vouchers = sum(line.voucher for line in terms.datasets)
    and_vouchers = f" and {many(vouchers, 'voucher')}" * bool(vouchers)
    lines = [
        f"{amount(quote.amount_units)} in all: datasets "
        f"{money(sum(d.price_units for d in terms.datasets))}"
        f"{and_vouchers}, compute up to "
        f"{money(sum(d.compute_cap_units for d in terms.datasets))}, reward "
        f"{money(terms.reward_units)}, the hub's fee {money(terms.fee_units)}",
        f"{many(quote.spec.rounds, 'round')} over {many(len(terms.datasets), 'hospital')}, "
        f"{terms.quorum} of which must finish; epsilon {quote.epsilon:.3f} at delta "
        f"{quote.spec.plan.delta:g} for each patient",
    ]
    if (dispute := terms.dispute) is not None:
        lines.append(
            f"payment waits {dispute.window_s} s for a dispute, whose bond is "
            f"{amount(dispute.bond_units)}; {dispute.arbiter} rules, and if it is silent "
            f"{dispute.silent_bps / 100:g} % are paid"
        )
    return lines + _expected(quote)


def _expected(quote: Quote) -> list[str]:
    """How much the answer or the report will say."""
    from datahub.comparison import MUCH

    lines = []
    if quote.question:
        noise = quote.spec.plan.noise_multiplier * quote.spec.plan.clip_norm
        wide = 1.96 * noise * math.sqrt(len(quote.terms.datasets))
        lines.append(f"the count of every cell will be known to about ± {wide:.1f} patients")
    for name, wide in quote.interval95.items():
        lines.append(
            f"with so few patients or so little epsilon the report's {name} will be more noise "
            "than signal"
            if wide > MUCH
            else f"the report's {name} will be known to about ± {wide / 2:.3f}"
        )
    return lines


def as_document(quote: Quote) -> dict[str, Any]:
    """A quote as JSON: what a person would read, in figures, and the whole terms."""
    return {
        "amount_units": quote.amount_units,
        "epsilon": quote.epsilon,
        "rounds": quote.spec.rounds,
        "interval95": dict(quote.interval95),
        "terms": parse(quote.terms.to_json()),
    }


def confirm_and_finish(quote: Quote, yes: bool, out: Path, as_json: bool) -> None:
    """Show the quote, ask, write the job down, pay it, and stay with it to its end."""
    for line in described(quote):
        complaints.print(line, soft_wrap=True)
    if not yes:
        typer.confirm("Pay?", abort=True, err=True)
    job = quote.keep()
    complaints.print(
        f"job {job.id} is written down; whatever happens from here on: datahub job resume "
        f"{job.id[:12]}",
        soft_wrap=True,
    )
    finish(job, out, as_json)


def finish(job: Job, out: Path, as_json: bool) -> None:
    """Everything that is left of a job. A failure says how to go on; raises Refunded where it ends
    with the money back.
    """
    from datahub.buyer.waiting import follow
    from datatokens.bindings.escrow import Status

    try:
        job.pay()
        status = job.on_chain
        if status is Status.FUNDED and job.market.chain.now() > job.deadline:
            job.refund()
            status = Status.REFUNDED
        if status is Status.REFUNDED:
            raise _ended(job, "", as_json)
        if status is not Status.SETTLED:
            job.hand_over()
            if (said := follow(job, complaints))["state"] == "refunded":
                raise _ended(job, said["reason"], as_json)
        return save(job, job.result(), out, as_json)
    except NotSettled:
        raise  # it says how to go on
    except (HubError, BankError, NodeError, TheatreError) as error:
        if job.on_chain in (Status.NONE, Status.REFUNDED):
            raise  # no money of it is anywhere but in the wallet
        go_on = f"{error}; go on with: datahub job resume {job.id[:12]}"
        raise (type(error) if isinstance(error, HubError) else HubError)(go_on) from error


def _ended(job: Job, reason: str, as_json: bool) -> HubError:
    """What to raise where a job is said to be refunded; printed for a script, too, if it is."""
    error = job.money_back(reason)
    if as_json and isinstance(error, Refunded):
        said = {"job_id": job.id, "state": "refunded", "reason": reason, "folder": None}
        typer.echo(json.dumps(said))
    return error


def save(job: Job, result: Result, out: Path, as_json: bool) -> None:
    """Write a result, and the answer of a job that asks for figures, to `out`."""
    from datahub.buyer.waiting import evaluation_line
    from fl_client.node.job_folder import write_whole

    files = result.save(out)
    answer = job.answer() if job.question else None
    if answer:
        write_whole(out / "answer.json", json.dumps(answer).encode())
        files.append("answer.json")
    if as_json:
        said = {"job_id": job.id, "state": "settled", "folder": str(out)}
        typer.echo(json.dumps(said | ({"answer": answer} if answer else {})))
        return
    if answer:
        from datahub.buyer.answers import table

        console.print(table(answer))
    else:
        console.print(evaluation_line(parse(result.report)["evaluation"]))
    console.print(f"settled; {', '.join(files)} are in {out}")
