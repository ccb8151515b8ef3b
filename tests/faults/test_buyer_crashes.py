"""kill -9 of a buyer's process at the statements of quote, pay, hand over, wait and download, of
going on, of a refund and of a claim: one named command ends the job in a result that opens, or with
the money wholly back. With the disk, and with nothing but the wallet's key and the chain.

By default the statements around each change of the world (a file, a transaction, a call to the hub)
and some others; `make crash-table` takes every one and prints what each ended in.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bank_world import World, found_world
from eth_account import Account

from datahub.buyer import job_store, jobs, networks
from datahub.errors import OrderRefused, Refunded
from datahub.market import catalogue
from datahub.shell import claim, job, order
from datahub.web.api import create_app
from datatokens.chain.rpc_server import anvil_binary, running_anvil, running_devchain
from datatokens.faucet import give
from fl_client.model.weights import from_safetensors, model_hash
from tests.datahub.fixtures import serving
from tests.datahub.hub_world import FEE_BPS, HubWorld, manifest, open_hub, publish_manifests
from tests.datahub.test_claims import OF_ALL, REVENUE, earning
from tests.datahub.test_contributors import ACCOUNTS, ENTRIES
from tests.faults.crashes import (
    Ended,
    Place,
    Process,
    around,
    begin,
    hospitals_work,
    places,
    run,
)

MONEY = 10**8  # base units in a new wallet
PRICE = 3_075_213  # of the order in Wallet.buy: prices, compute caps and the hub's fee
DEADLINE_S = 700
NOTHING, RESULT, REFUND = "nothing paid", "result", "refund"
ALL_ENDS = {NOTHING, f"{RESULT} by resume", f"{RESULT} by result", f"{REFUND} by refund"}
# addresses with weights 1, 2, 3 ... in earning()'s contributor list
SHARE = OF_ALL * 2 // sum(weight for _, weight in ENTRIES)


@dataclass
class Stage:
    """A hub at work and room for buyers, each with a new wallet and an own home."""

    hub: HubWorld
    url: str
    folder: Path
    wallets: int = field(default=0)

    def wallet(self) -> Wallet:
        """A new one, with MONEY and gas."""
        self.wallets += 1
        folder = self.folder / f"buyer{self.wallets}"
        folder.mkdir()
        account = Account.create()
        (folder / "key").write_text("0x" + account.key.hex().removeprefix("0x"))
        bank = self.hub.bank
        give(bank.url, account.address, wei=10**18, made=bank.deployment, units=MONEY)
        return self.at_home(Wallet(self, folder, account.address))

    def at_home(self, made: Wallet) -> Wallet:
        """Let it be the one whose home the next processes see, with the hub pinned there."""
        bank = self.hub.bank
        made.enter()
        networks.pin(networks.Network("here", self.url, bank.url, FEE_BPS, bank.deployment))
        return made

    def machine(self, wallet: Wallet) -> Wallet:
        """The same wallet on another machine."""
        folder = wallet.folder / "elsewhere"
        folder.mkdir()
        shutil.copy(wallet.key, folder / "key")
        return self.at_home(Wallet(self, folder, wallet.address))


@dataclass
class Wallet:
    """One buyer: a key, a home on the disk, and the commands that a person would type."""

    stage: Stage
    folder: Path
    address: str

    def enter(self) -> None:
        """Let this buyer's home be that of the processes to come."""
        os.environ["DATAHUB_HOME"] = str(self.folder / "home")

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def buy(self) -> None:
        jobs.POLL_S = 0.02
        order.new(
            key_file=self.key,
            dataset=[1, 2, 3],
            epsilon=2.0,
            purpose="research",
            rounds=2,
            deadline_s=DEADLINE_S,
            out=self.out,
            yes=True,
            as_json=True,
        )

    def jobs(self) -> list[dict[str, Any]]:
        """What `datahub job list --json` prints."""
        with contextlib.redirect_stdout(io.StringIO()) as said:
            job.list_jobs(key_file=self.key, as_json=True)
        rows: list[dict[str, Any]] = json.loads(said.getvalue())
        return rows

    def go_on(self) -> None:
        """Look at one's jobs and run the command that is named there; a job that was never paid is
        paid by resuming it.
        """
        jobs.POLL_S = 0.02
        rows = self.jobs()
        assert len(rows) <= 1, rows
        for row in rows:
            words = row["next"].split()
            command = words[2] if words[0] == "datahub" else "resume"
            name = row["job_id"][:12]
            assert command == "resume" or words[3] == name
            {"resume": self.resume, "refund": self.refund, "result": self.result}[command](name)
            print(f"by {command}")

    def resume(self, name: str) -> None:
        jobs.POLL_S = 0.02
        with contextlib.suppress(Refunded):  # the money is back: an end, with exit code 4
            job.resume(name, key_file=self.key, out=self.out, yes=True, as_json=True)

    def refund(self, name: str) -> None:
        job.refund(name, key_file=self.key, as_json=True)

    def result(self, name: str) -> None:
        job.result(name, key_file=self.key, out=self.out, as_json=True)

    # -- what is true outside of the process ------------------------------------------------------

    @property
    def units(self) -> int:
        return self.stage.hub.bank.money(self.stage.hub.bank.operator).balance_units(self.address)

    @property
    def approved(self) -> int:
        bank = self.stage.hub.bank
        return bank.money(bank.operator).allowance_units(self.address, bank.deployment.market)

    def paid(self) -> dict[bytes, int]:
        """Every job that this wallet has paid."""
        return self.stage.hub.desk.escrow.created_by(self.address)

    def lose_the_disk(self) -> None:
        """Everything but the key and what every new machine pins first."""
        for path in (job_store.jobs_folder(), self.out):
            shutil.rmtree(path, ignore_errors=True)

    def time_passes(self) -> None:
        """The deadline passes before any hospital has done anything."""
        bank = self.stage.hub.bank
        for paid, deadline in self.paid().items():
            if self.stage.hub.desk.escrow.job(paid).status == "funded":
                # a chain whose blocks run ahead of its clock comes no further than its clock
                bank.travel(max(1, deadline - bank.operator.newest_block_time()) + 900)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("crashes")
    before = os.environ.get("DATAHUB_HOME")
    # the chain's speed is most of what these tests cost; what is asked of it is the same
    with running_anvil() if anvil_binary() else running_devchain(instant=True) as chain:
        bank: World = found_world(chain)
        publish_manifests(bank)
        hub = open_hub(bank, folder)
        for number in bank.dataset_ids:
            catalogue.put_manifest(hub.desk, number, manifest(number).as_dict())
        hub.desk.config.superlink_folder.mkdir(exist_ok=True)
        (hub.desk.config.superlink_folder / "ca.crt").write_text("none is needed here")
        with serving(create_app(hub.desk, drive=False)) as url:
            yield Stage(hub, url, folder)
    os.environ.pop("DATAHUB_HOME")
    if before is not None:
        os.environ["DATAHUB_HOME"] = before


def working(stage: Stage) -> Callable[[], None]:
    return lambda: hospitals_work(stage.hub)


def done(ended: Ended) -> str:
    """What was said by a process that ended well."""
    assert (ended.killed, ended.status) == (False, 0), ended.said[-3000:]
    return ended.said


def ending(wallet: Wallet) -> str:
    """What the buyer has now, checked to the last unit: NOTHING, RESULT or REFUND."""
    escrow, paid = wallet.stage.hub.desk.escrow, wallet.paid()
    assert len(paid) <= 1, "paid twice"
    if not paid:
        assert wallet.units == MONEY and wallet.approved in (0, PRICE)
        return NOTHING
    assert wallet.approved == 0
    (job,) = paid
    if escrow.job(job).status == "refunded":
        assert wallet.units == MONEY
        return REFUND
    settlement = escrow.settlement(job)
    assert settlement is not None, "neither a result nor a refund"
    assert wallet.units == MONEY - PRICE + settlement.change_units
    arrays = from_safetensors((wallet.out / "model.safetensors").read_bytes())
    assert model_hash(arrays) == settlement.attestation.model_hash
    assert {path.name for path in wallet.out.glob("[!.]*")} == {
        "model.safetensors",
        "graph.json",
        "report.json",
        "terms.json",
        "schema.json",
        "README.md",
    }
    return RESULT


def after_a_kill(stage: Stage, place: Place, disk: bool) -> str:
    """Kill the purchase at `place` and go on by the one named command; what it ended in, and by
    which command.
    """
    wallet = stage.wallet()
    ended = run(wallet.buy, wallet.folder, at=place, meanwhile=working(stage))
    if not ended.killed:  # a statement of waiting that this run did not need
        done(ended)
    elif not disk:
        wallet.lose_the_disk()
        wallet.time_passes()
    return gone_on(wallet)


def gone_on(wallet: Wallet) -> str:
    """What the wallet's one job ends in, in a new process, and by which command."""
    said = done(run(wallet.go_on, wallet.folder, meanwhile=working(wallet.stage)))
    by = [line for line in said.splitlines() if line.startswith("by ")]
    return " ".join([ending(wallet), *by])


def tried(chosen: Iterable[Place], kill: Callable[[Place], str]) -> dict[Place, str]:
    """What each place ended in. Fails with the place by name."""
    seen = {}
    for place in chosen:
        try:
            seen[place] = kill(place)
        except AssertionError as error:
            raise AssertionError(f"killed before {place} ({place.text}): {error}") from error
    return seen


def table(title: str, ended: dict[Place, str]) -> str:
    """The crash table of one command: each statement, what it ends in."""
    lines = [f"{place!s:38} {what:18} {place.text[:60]}" for place, what in ended.items()]
    sums = [f"{count:5} {what}" for what, count in sorted(Counter(ended.values()).items())]
    return "\n".join([f"\n{title}, killed before", *lines, f"{len(lines)} statements", *sums])


def with_what(disk: bool) -> str:
    return "with the disk" if disk else "with key and chain alone"


@pytest.fixture(scope="module")
def found(stage: Stage) -> list[Place]:
    """Every place of a purchase, in order."""
    wallet = stage.wallet()
    met = places(wallet.buy, wallet.folder, working(stage))
    assert len(met) > 600 and ending(wallet) == RESULT
    return met


def sending(met: list[Place]) -> list[Place]:
    """The places before and after each transaction."""
    return around(met, "send_raw_transaction(")


# a purchase: quote, pay, hand over, wait, download


def test_a_purchase_killed_around_every_change__ends_in_a_result_or_the_money(
    stage: Stage, found: list[Place]
) -> None:
    sent = around(found, "send_raw_transaction(", "._client.request(")
    written = [place for place in around(found, ".replace(path)") if place not in sent]
    others = [place for place in found[::160] if place not in [*sent, *written]]
    assert len(sent) >= 6 and len(written) >= 12
    kept = tried([*sent, *written[::2], *others[::2]], lambda at: after_a_kill(stage, at, True))
    lost = tried([*sent, *written[1::2], *others[1::2]], lambda at: after_a_kill(stage, at, False))
    assert {*kept.values(), *lost.values()} == ALL_ENDS


@pytest.mark.deep
@pytest.mark.parametrize("disk", [True, False], ids=["with_the_disk", "with_key_and_chain"])
def test_a_purchase_killed_at_every_statement__ends_in_a_result_or_the_money(
    stage: Stage, found: list[Place], disk: bool
) -> None:
    ended = tried(found, lambda at: after_a_kill(stage, at, disk))
    print(table(f"buy, {with_what(disk)}", ended))
    alone = f"{RESULT} by resume" if disk else f"{REFUND} by refund"
    assert set(ended.values()) == {NOTHING, f"{RESULT} by result", alone}


# going on, and taking the money back


def died(stage: Stage, found: list[Place], sent: int) -> tuple[Wallet, str]:
    """A wallet whose purchase died after `sent` of its two transactions; the job."""
    wallet = stage.wallet()
    at = sending(found)[2 * sent - 1]
    assert run(wallet.buy, wallet.folder, at=at, meanwhile=working(stage)).killed
    (job,) = job_store.kept_jobs()
    assert len(wallet.paid()) == (sent == 2)
    return wallet, job.id


def killed_resume(stage: Stage, found: list[Place], place: Place) -> str:
    wallet, job = died(stage, found, 1)
    run(lambda: wallet.resume(job), wallet.folder, at=place, meanwhile=working(stage))
    return gone_on(wallet)


def killed_refund(stage: Stage, found: list[Place], place: Place, disk: bool) -> str:
    wallet, job = late(stage, found, disk)
    run(lambda: wallet.refund(job), wallet.folder, at=place)
    done(run(lambda: wallet.refund(job), wallet.folder))
    return ending(wallet)


def late(stage: Stage, found: list[Place], disk: bool) -> tuple[Wallet, str]:
    """A wallet with a paid job whose deadline has passed."""
    wallet, job = died(stage, found, 2)
    wallet.time_passes()
    if not disk:
        wallet.lose_the_disk()
    return wallet, job


def of_resume(stage: Stage, found: list[Place]) -> list[Place]:
    wallet, job = died(stage, found, 1)
    return places(lambda: wallet.resume(job), wallet.folder, working(stage))


def of_refund(stage: Stage, found: list[Place], disk: bool) -> list[Place]:
    wallet, job = late(stage, found, disk)
    return places(lambda: wallet.refund(job), wallet.folder)


def test_resume_or_refund_killed_around_every_change__is_run_again(
    stage: Stage, found: list[Place]
) -> None:
    sent = around(of_resume(stage, found), "send_raw_transaction(", "._client.request(")
    assert len(sent) >= 4
    resumed = tried(sent, lambda at: killed_resume(stage, found, at))
    assert {what.split()[0] for what in resumed.values()} == {RESULT}
    for disk in (True, False):
        back = sending(of_refund(stage, found, disk))
        ended = tried(back, lambda at, disk=disk: killed_refund(stage, found, at, disk))
        assert len(back) == 2 and set(ended.values()) == {REFUND}


@pytest.mark.deep
def test_resume_killed_at_every_statement__is_run_again(stage: Stage, found: list[Place]) -> None:
    ended = tried(of_resume(stage, found), lambda at: killed_resume(stage, found, at))
    print(table("resume of a job that was not paid", ended))
    assert {what.split()[0] for what in ended.values()} == {RESULT}


@pytest.mark.deep
@pytest.mark.parametrize("disk", [True, False], ids=["with_the_disk", "with_key_and_chain"])
def test_refund_killed_at_every_statement__is_run_again(
    stage: Stage, found: list[Place], disk: bool
) -> None:
    met = of_refund(stage, found, disk)
    ended = tried(met, lambda at: killed_refund(stage, found, at, disk))
    print(table(f"refund, {with_what(disk)}", ended))
    assert set(ended.values()) == {REFUND}


# a contributor's claim


@dataclass
class Contributor:
    """Somebody with a share of a dataset, and a stranger who sends the claim."""

    stage: Stage
    sender: Wallet
    account: str
    dataset_id: int

    def claim(self) -> None:
        claim.claim_all(key_file=self.sender.key, account=self.account, as_json=True)

    @property
    def units(self) -> int:
        bank = self.stage.hub.bank
        return bank.money(bank.operator).balance_units(self.account)

    def earn(self) -> None:
        bank = self.stage.hub.bank
        bank.revenue(bank.buyer).pay_revenue(self.dataset_id, REVENUE)

    def after_a_kill(self, place: Place) -> str:
        """Kill a claim at `place` and claim again; everything must have come exactly once."""
        before = self.units
        run(self.claim, self.sender.folder, at=place)
        done(run(self.claim, self.sender.folder))
        assert self.units == before + SHARE
        self.earn()
        return "claimed once"


@pytest.fixture
def contributor(stage: Stage) -> Contributor:
    made = Contributor(stage, stage.wallet(), ACCOUNTS[1], earning(stage.hub))
    assert places(made.claim, made.sender.folder)
    made.earn()
    return made


def test_claim_killed_around_its_transaction__pays_once(contributor: Contributor) -> None:
    sent = sending(places(contributor.claim, contributor.sender.folder))
    contributor.earn()
    assert len(sent) == 2
    tried(sent, contributor.after_a_kill)


@pytest.mark.deep
def test_claim_killed_at_every_statement__pays_once(contributor: Contributor) -> None:
    found = places(contributor.claim, contributor.sender.folder)
    contributor.earn()
    print(table("claim", tried(found, contributor.after_a_kill)))


# what is worse than one kill at a moment


@pytest.fixture
def by_hand(stage: Stage) -> Iterator[Callable[[bool], None]]:
    """Whether the chain mines by itself: by_hand(True), by_hand(False)."""
    if not anvil_binary():
        pytest.skip("a chain that mines when it is told to is anvil: make tools")
    operator = stage.hub.bank.operator

    def turn(on: bool) -> None:
        operator.rpc("evm_setAutomine", not on)
        if not on:
            operator.rpc("evm_mine")

    yield turn
    turn(False)


def test_killed_while_the_payment_waits_for_a_block__is_paid_once(
    stage: Stage, found: list[Place], by_hand: Callable[[bool], None]
) -> None:
    """The chain knows nothing of the payment yet when the buyer goes on."""
    after = sending(of_resume(stage, found))[1]
    wallet, job = died(stage, found, 1)
    by_hand(True)
    assert run(lambda: wallet.resume(job), wallet.folder, at=after).killed
    assert wallet.paid() == {}
    again = begin(lambda: wallet.resume(job), wallet.folder / "output.txt")
    time.sleep(1)
    assert wallet.paid() == {}
    by_hand(False)
    done(again.wait(working(stage)))
    assert ending(wallet) == RESULT


def test_killed_while_the_refund_waits_for_a_block__comes_once(
    stage: Stage, found: list[Place], by_hand: Callable[[bool], None]
) -> None:
    after = sending(of_refund(stage, found, True))[1]
    wallet, job = late(stage, found, True)
    by_hand(True)
    assert run(lambda: wallet.refund(job), wallet.folder, at=after).killed
    assert wallet.units == MONEY - PRICE
    again = begin(lambda: wallet.refund(job), wallet.folder / "output.txt")
    time.sleep(1)
    by_hand(False)
    done(again.wait())
    assert ending(wallet) == REFUND


def paused(wallet: Wallet, at: Place) -> Process:
    """A purchase that has come to `at` and stays there until the file `go` is there."""
    here, go = wallet.folder / "here", wallet.folder / "go"

    def met(place: Place) -> None:
        if place == at:
            here.touch()
            for _ in range(3000):  # a test that fails must not leave it behind
                if go.exists():
                    return
                time.sleep(0.01)
            os._exit(9)

    process = begin(wallet.buy, wallet.folder / "first.txt", met)
    until(here.exists)
    return process


def until(true: Callable[[], bool]) -> None:
    """Wait for it, half a minute at most."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("waited in vain")


def test_two_purchases_at_once_from_one_wallet__the_second_waits(
    stage: Stage, found: list[Place]
) -> None:
    """An approval is for one payment: a second one in between would take the first's away."""
    wallet = stage.wallet()
    first = paused(wallet, sending(found)[1])
    second = begin(wallet.buy, wallet.folder / "second.txt")
    until(lambda: len(job_store.kept_jobs()) == 2)
    time.sleep(0.5)
    assert wallet.approved == PRICE and not wallet.paid()
    (wallet.folder / "go").touch()
    for process in (first, second):
        done(process.wait(working(stage)))
    ended = [stage.hub.desk.escrow.settlement(job) for job in wallet.paid()]
    assert len(ended) == 2 and wallet.approved == 0
    assert wallet.units == MONEY - sum(PRICE - one.change_units for one in ended if one)


def test_two_machines_pay_from_one_wallet__one_is_told_and_loses_nothing(
    stage: Stage, found: list[Place]
) -> None:
    wallet = stage.wallet()
    first = paused(wallet, sending(found)[1])
    there = stage.machine(wallet)
    done(run(there.buy, there.folder, meanwhile=working(stage)))
    assert len(wallet.paid()) == 1
    (wallet.folder / "go").touch()
    ended = first.wait(working(stage))
    assert ended.status == 1 and "another machine is paying from" in ended.said
    assert len(wallet.paid()) == 1 and wallet.approved == 0
    wallet.enter()
    (job,) = job_store.kept_jobs()
    done(run(lambda: wallet.resume(job.id), wallet.folder, meanwhile=working(stage)))
    assert len(wallet.paid()) == 2 and wallet.approved == 0


def test_a_payment_that_never_ends__the_next_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_store, "PAYING_S", 0.1)
    wallet = stage.wallet()
    with (
        job_store.sole_payer(wallet.address),
        pytest.raises(OrderRefused, match=r"another process has been paying from 0x.*nothing"),
        job_store.sole_payer(wallet.address.lower()),
    ):
        pytest.fail("two at once")


def test_the_disk_is_lost_and_the_hub_knows_nothing__resume_says_so_and_later_takes_it_back(
    stage: Stage, found: list[Place]
) -> None:
    """The very command that a sentence names must lead out."""
    wallet, job = died(stage, found, 2)
    wallet.lose_the_disk()
    waits = run(lambda: wallet.resume(job), wallet.folder, meanwhile=working(stage))
    assert waits.status == 1 and "are not on this disk, and not to be had from the" in waits.said
    assert "the money comes back after the deadline; go on with: datahub job resume" in waits.said
    wallet.time_passes()
    done(run(lambda: wallet.resume(job), wallet.folder))
    assert ending(wallet) == REFUND


def test_terms_that_were_damaged_on_the_disk__count_as_not_kept(
    stage: Stage, found: list[Place]
) -> None:
    wallet, job = died(stage, found, 2)
    file = job_store.jobs_folder() / job / job_store.TERMS
    raw = file.read_bytes()
    for content in (b"", raw[: len(raw) // 2], raw.replace(b"research", b"anything")):
        file.write_bytes(content)
        assert job_store.kept(job) is None and job_store.kept_jobs() == []
    wallet.time_passes()
    assert gone_on(wallet) == f"{REFUND} by refund"
