"""A person decides: jobs wait, are approved or refused, expire; rules that are ambiguous are none.
On a real chain, through the node's own door.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import zeros
from typer.testing import CliRunner

from datatokens.bindings.escrow import Escrow, Status
from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.terms import JobTerms, acceptance_message, check_signature, rejection_message
from fl_client.errors import ConfigError, JobDamaged, PolicyRefusal, ProtocolError
from fl_client.model.export import export_model
from fl_client.model.families import build as build_family
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.node import admission, config, inbox, room
from fl_client.node.admission import admit
from fl_client.node.job_folder import JobFolder
from fl_client.node.policy import RULE_FIELDS, Request, Rule, may_begin, span
from fl_client.node.purposes import INTENTS, MODIFIERS, PERMISSIONS, match, problem
from fl_client.node.rounds import ask, attest, train
from fl_client.office.cli import node
from fl_client.protocol import JobSpec, Refused, Signed, Waiting, sha256_hex
from fl_client.worker.tasks import MOST_SHOWN
from fl_server.report import Round, build
from tests.clinic import (
    BUYER,
    FOR_EVERYBODY,
    GRAPH,
    OTHER_BUYER,
    WEIGHTS,
    Clinic,
    part_of,
    refusal,
    trained,
    weights,
)

RULE = Rule("r", ("*",), ("*",), ("*",), ("*",), 2.0, 3)
REQUEST = Request("0x" + "1" * 40, "research", 1.0, 1e-5, 40, graph="ab" * 32)


@pytest.fixture
def asking(clinic: Clinic) -> Clinic:
    """A clinic as it is after `datahub node init`: no rule, so a person is asked."""
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace(FOR_EVERYBODY, ""))
    return clinic


def rewrite(clinic: Clinic, old: str, new: str) -> None:
    toml = clinic.folder / "node.toml"
    assert old in toml.read_text()
    toml.write_text(toml.read_text().replace(old, new))


def sent(clinic: Clinic, **changes: Any) -> tuple[JobTerms, room.DataRoom]:
    terms, there = clinic.paid(**changes), clinic.room()
    assert isinstance(admit(there, terms.to_json(), GRAPH, WEIGHTS), Waiting)
    return terms, there


def run(*words: str) -> Any:
    return CliRunner().invoke(node, list(words), catch_exceptions=False)


def test_admit__as_installed__nothing_is_taken_without_a_person(asking: Clinic) -> None:
    terms, there = sent(asking)
    key = there.datasets[0].name
    assert there.ledger.jobs(key) == [] and there.ledger.reserved(key) == []
    again = ask(asking.room(), terms.job_id.hex())
    assert isinstance(again, Waiting), "a restart changes nothing"
    (held,) = inbox.waiting(asking.folder)
    assert 0 < held.facts["seconds"] < 60
    assert terms.deadline - inbox.LEAST_AFTER_S - 60 < again.until == held.until
    assert held.until < terms.deadline - inbox.LEAST_AFTER_S, "early enough for the training"
    assert isinstance(admit(there, terms.to_json(), GRAPH, WEIGHTS), Waiting), "nor a second run"


def test_approve__by_hand__is_accepted_and_reserved_and_no_second_word_counts(
    asking: Clinic,
) -> None:
    terms, there = sent(asking)
    job = terms.job_id.hex()
    done = run("approve", str(asking.folder), job[:12], "--by", "Dr. Amsel", "--json")
    assert json.loads(done.output) == {
        "job": job,
        "yes": True,
        "by": "Dr. Amsel",
        "decided": True,
    }
    answer = ask(there, job)
    assert isinstance(answer, Signed)
    check_signature(acceptance_message(terms), answer.signature, asking.node)
    assert there.ledger.reserved(there.datasets[0].name)
    assert there.folder(job).answered_by()[0] == "Dr. Amsel"
    with pytest.raises(ConfigError, match=r"was answered already by Dr\. Amsel"):
        run("refuse", str(asking.folder), job, "--reason", "too late")
    assert isinstance(ask(there, job), Signed)
    train(there, job, 1, weights())


def test_refuse__by_hand__is_signed_with_the_reason_and_the_money_goes_back(
    asking: Clinic,
) -> None:
    terms, there = sent(asking)
    job = terms.job_id.hex()
    run("refuse", str(asking.folder), job, "--reason", "our board has not met", "--by", "IT")
    answer = ask(there, job)
    assert isinstance(answer, Refused) and answer.reason == "our board has not met"
    check_signature(rejection_message(terms, answer.reason), answer.signature, asking.node)
    escrow = Escrow(connect(asking.url, OTHER_BUYER[1]), asking.made.market)
    escrow.refund_rejected(terms, {asking.node: (answer.reason, answer.signature)})
    assert escrow.job(terms.job_id).status == "refunded"
    assert inbox.waiting(asking.folder) == []


def test_nobody_answers__refused_at_the_end_with_a_signature(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = connect(asking.url).now() + 900
    terms, there = sent(asking, spec=replace(asking.spec(), answer_by=end))
    monkeypatch.setattr(there.chain, "now", lambda: end + 1)
    answer = ask(there, terms.job_id.hex())
    assert isinstance(answer, Refused) and answer.signature
    assert answer.reason.startswith("nobody at this hospital has said yes by 20")
    with pytest.raises(ConfigError, match="was answered already"):
        run("approve", str(asking.folder), terms.job_id.hex())


def test_approved__and_then_the_budget_is_gone__refused_and_nothing_reserved(
    asking: Clinic,
) -> None:
    terms, there = sent(asking, spec=asking.spec(epsilon=2.0))
    others = [sent(asking, spec=asking.spec(epsilon=2.0))[0] for _ in range(1)]
    for one in (*others, terms):
        run("approve", str(asking.folder), one.job_id.hex())
    assert isinstance(ask(there, others[0].job_id.hex()), Signed)
    answer = ask(there, terms.job_id.hex())
    assert isinstance(answer, Refused) and answer.signature and "lifetime budget" in answer.reason
    assert not there.ledger.knows(terms.job_id.hex())


def test_two_persons__one_of_them_twice_is_one(asking: Clinic) -> None:
    rewrite(asking, 'approval = "person"', 'approval = "two persons"')
    terms, there = sent(asking)
    job = terms.job_id.hex()
    for _ in range(2):
        done = run("approve", str(asking.folder), job, "--by", "A")
        assert "a second person" in done.output
        assert isinstance(ask(there, job), Waiting)
    run("approve", str(asking.folder), job, "--by", "B")
    assert isinstance(ask(there, job), Signed)
    assert there.folder(job).answered_by()[0] == "A, B"


def test_one_of_two_says_no__it_is_no(asking: Clinic) -> None:
    rewrite(asking, 'approval = "person"', 'approval = "two persons"')
    terms, there = sent(asking)
    run("approve", str(asking.folder), terms.job_id.hex(), "--by", "A")
    run("refuse", str(asking.folder), terms.job_id.hex(), "--by", "B", "--reason", "no")
    assert isinstance(ask(there, terms.job_id.hex()), Refused)


def test_paid_back_meanwhile__a_yes_changes_nothing(asking: Clinic) -> None:
    terms, there = sent(asking)
    run("approve", str(asking.folder), terms.job_id.hex())
    real = there.escrow.job
    there.escrow.job = lambda job: replace(real(job), status="refunded")  # type: ignore[method-assign, assignment]
    answer = ask(there, terms.job_id.hex())
    assert isinstance(answer, Refused) and not answer.signature


def test_waits__what_is_in_its_way_meanwhile__decides_nothing(asking: Clinic) -> None:
    """A dataset that is paused for a minute, a chain that is away: nothing is looked at before
    somebody has said yes; then everything is.
    """
    terms, there = sent(asking)
    job = terms.job_id.hex()
    registry = Registry(connect(asking.url, accounts()[1][1]), asking.made.registry)
    registry.set_state(asking.dataset_id, State.PAUSED)
    assert isinstance(ask(there, job), Waiting)
    registry.set_state(asking.dataset_id, State.ACTIVE)
    run("approve", str(asking.folder), job)
    assert isinstance(ask(there, job), Signed)


def test_yes__too_late_for_the_training__refused_and_nothing_reserved(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, there = sent(asking)
    job = terms.job_id.hex()
    request = json.loads((there.folder(job).path / "request.json").read_text())
    left = terms.deadline - there.chain.now()
    slow = request | {"seconds": left - 100.0}
    (there.folder(job).path / "request.json").write_text(json.dumps(slow))
    assert inbox.waiting(asking.folder)[0].until < time.time()
    with pytest.raises(ConfigError, match="its time for an answer is over"):
        run("approve", str(asking.folder), job)
    with pytest.raises(
        PolicyRefusal, match=r"takes 20\.0 minutes here, and 19\.\d minutes are left"
    ):
        admission._check_time_left(terms, 1200.0, terms.deadline - 1190)


def test_decide__while_the_node_answers__one_of_them_comes_first(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A no that is said to count counts."""
    terms, there = sent(asking)
    job, said = terms.job_id.hex(), []
    run("approve", str(asking.folder), job, "--by", "A")

    def no() -> None:
        try:
            run("refuse", str(asking.folder), job, "--reason", "wait", "--by", "B")
            said.append("counts")
        except ConfigError as error:
            said.append(str(error))

    late = threading.Thread(target=no)
    real = admission._check_time_left

    def meanwhile(*given: Any) -> None:
        late.start()
        time.sleep(0.3)
        real(*given)

    monkeypatch.setattr(admission, "_check_time_left", meanwhile)
    answer = ask(there, job)
    late.join()
    assert isinstance(answer, Signed) and "answered" in said[0]
    assert [one.by for one in there.folder(job).decisions()] == ["A"]


def test_paid_back__is_in_the_inbox_no_longer(asking: Clinic) -> None:
    terms, there = sent(asking)
    job, real = terms.job_id.hex(), there.escrow.job
    there.clear_inbox()
    assert len(inbox.waiting(asking.folder)) == 1
    there._next_inbox = 0.0
    there.escrow.job = lambda job: replace(real(job), status="refunded")  # type: ignore[method-assign, assignment]
    there.clear_inbox()
    assert inbox.waiting(asking.folder) == []
    with pytest.raises(ConfigError, match="no longer holds its money: it is refunded"):
        run("approve", str(asking.folder), job)


def test_clear_inbox__the_chain_connection_is_behind__a_job_waits_on(asking: Clinic) -> None:
    """A job that was seen paid is not there for one that has not caught up."""
    _, there = sent(asking)
    real = there.escrow.job
    there.escrow.job = lambda job: replace(real(job), status=Status.NONE)  # type: ignore[method-assign, assignment]
    there.clear_inbox()
    assert len(inbox.waiting(asking.folder)) == 1


def test_clear_inbox__disk_is_full__the_node_goes_on(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = sent(asking)
    real = there.escrow.job
    there.escrow.job = lambda job: replace(real(job), status=Status.REFUNDED)  # type: ignore[method-assign, assignment]

    def full(self: JobFolder, why: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JobFolder, "keep_gone", full)
    there.clear_inbox()
    assert len(inbox.waiting(asking.folder)) == 1, "and looks again later"


@pytest.mark.parametrize(
    "name", ["request.json", "decisions.json", "answer.json", "terms.json", "held.json"]
)
def test_a_file_of_one_job_is_damaged__every_other_job_is_served(asking: Clinic, name: str) -> None:
    bad, there = sent(asking)
    (asking.folder / "jobs" / bad.job_id.hex() / name).write_text("{")
    there.clear_inbox()
    good, _ = sent(asking)
    run("approve", str(asking.folder), good.job_id.hex())
    assert isinstance(ask(there, good.job_id.hex()), Signed)
    try:
        assert ask(there, bad.job_id.hex()) == Refused(admission.NOT_NOW), "that decides nothing"
    except JobDamaged as error:  # which is answered so by whoever asks
        assert name in str(error)
    shown = json.loads(run("inbox", str(asking.folder), "--json").stdout)
    assert len(shown["damaged"]) == 1 and name in shown["damaged"][0]
    assert "not shown" in run("inbox", str(asking.folder)).output


def test_restart__files_of_jobs_under_way_are_damaged__the_node_starts(clinic: Clinic) -> None:
    terms, _, arrays, _ = trained(clinic)
    folder = clinic.folder / "jobs" / terms.job_id.hex()
    (folder / "terms.json").write_text("{")
    (folder / "attested.txt").write_text(f"{'1' * 64} {'2' * 64}")
    (folder / "report.json").write_text("{")
    there = clinic.room()
    other = clinic.paid()
    assert isinstance(admit(there, other.to_json(), GRAPH, WEIGHTS), Signed)
    with pytest.raises(JobDamaged, match=r"terms\.json"):
        train(there, terms.job_id.hex(), 1, arrays)


def test_rule__an_answer_that_cannot_be_read__counts_as_its_own(clinic: Clinic) -> None:
    rewrite(clinic, "jobs_per_week = 1000", "jobs_per_week = 1")
    terms = clinic.paid()
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)
    (clinic.folder / "jobs" / terms.job_id.hex() / "answer.json").write_text("{")
    other = clinic.paid()
    assert isinstance(admit(clinic.room(), other.to_json(), GRAPH, WEIGHTS), Waiting)


def test_brief__says_what_became_of_the_buyers_jobs_before(asking: Clinic) -> None:
    first, there = sent(asking)
    run("approve", str(asking.folder), first.job_id.hex())
    assert isinstance(ask(there, first.job_id.hex()), Signed)
    second, _ = sent(asking)
    shown = json.loads(run("inbox", str(asking.folder), second.job_id.hex()[:12], "--json").output)
    known = Escrow(connect(asking.url), asking.made.market).created_by(BUYER[0])
    assert shown["buyer_so_far"].startswith(f"{len(known)} jobs on this market (")
    assert "funded" in shown["buyer_so_far"] and "1 accepted" in shown["buyer_so_far"]


def test_inbox__is_full__the_next_job_is_refused_signed(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_WAITING", 1)
    sent(asking)
    answer = admit(asking.room(), asking.paid().to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and answer.signature and "order again later" in answer.reason


def test_inbox__one_buyer__keeps_nobody_else_out(asking: Clinic) -> None:
    there = asking.room()
    for _ in range(3):
        sent(asking)
    fourth = admit(there, asking.paid().to_json(), GRAPH, WEIGHTS)
    assert isinstance(fourth, Refused) and fourth.signature
    assert "has 3 jobs that wait for a person at this hospital; at most 3" in fourth.reason
    sent(asking, buyer=OTHER_BUYER[0], key=OTHER_BUYER[1])


@pytest.mark.parametrize("by", ["rule everybody", " Rule  everybody"])
def test_decide__by_the_name_of_a_rule__refused(asking: Clinic, by: str) -> None:
    terms, there = sent(asking)
    with pytest.raises(ConfigError, match=r"the rules of node\.toml called"):
        inbox.decide(asking.folder, there.config.policy_of, terms.job_id.hex(), by, True)


def test_two_persons__a_name_in_other_letters__is_the_same_person(asking: Clinic) -> None:
    rewrite(asking, 'approval = "person"', 'approval = "two persons"')
    terms, there = sent(asking)
    for by in ("Ada Lovelace", "ada  lovelace"):
        inbox.decide(asking.folder, there.config.policy_of, terms.job_id.hex(), by, True)
    assert isinstance(ask(there, terms.job_id.hex()), Waiting)


def test_ask__for_a_job_that_was_never_sent__protocol_error(asking: Clinic) -> None:
    with pytest.raises(ProtocolError, match="was not sent"):
        ask(asking.room(), "ab" * 32)


def test_brief__a_model_of_more_steps_than_are_kept__is_not_said_to_have_so_many(
    asking: Clinic,
) -> None:
    terms, _ = sent(asking)
    file = asking.folder / "jobs" / terms.job_id.hex() / "request.json"
    facts = json.loads(file.read_text())
    assert " steps" in run("inbox", str(asking.folder)).output
    assert "or more steps" not in run("inbox", str(asking.folder)).output
    steps = [["relu.default", "[2]", [i - 1]] for i in range(MOST_SHOWN)]
    file.write_text(json.dumps(facts | {"operations": steps}))
    assert f"{MOST_SHOWN} or more" in run("inbox", str(asking.folder)).output


def test_inbox_command__says_what_the_terms_say_and_what_leaves(asking: Clinic) -> None:
    terms, _ = sent(asking, spec=replace(asking.spec(), purpose_codes=("DUO:0000006",)))
    facts = json.loads(run("inbox", str(asking.folder), terms.job_id.hex(), "--json").output)
    assert facts["buyer"] == terms.buyer and facts["money"]["price_units"] == 1_000_000
    assert facts["purpose_codes"] == [["DUO:0000006", INTENTS["DUO:0000006"]]]
    assert facts["privacy"]["lifetime_after"] > facts["privacy"]["lifetime_before"] == 0
    assert facts["privacy"]["epsilon_job"] == pytest.approx(1.0, abs=0.01)
    assert facts["leaves"][0]["numbers"] == sum(array.size for array in weights().values()) == 3
    assert facts["model"]["steps"][0][0] == "linear layer"
    text = run("inbox", str(asking.folder)).output
    assert terms.job_id.hex()[:12] in text and "answer by" in text


# -- rules -----------------------------------------------------------------------------------------


def test_rule__takes_its_jobs_a_week_and_then_a_person_is_asked(clinic: Clinic) -> None:
    rewrite(clinic, "jobs_per_week = 1000", "jobs_per_week = 1")
    there = clinic.room()
    first, second = clinic.paid(clinic.spec(epsilon=0.1)), clinic.paid(clinic.spec(epsilon=0.1))
    assert isinstance(admit(there, first.to_json(), GRAPH, WEIGHTS), Signed)
    assert there.folder(first.job_id.hex()).answered_by()[0] == "rule everybody"
    assert isinstance(admit(there, second.to_json(), GRAPH, WEIGHTS), Waiting)
    assert isinstance(admit(there, first.to_json(), GRAPH, WEIGHTS), Signed), "the same again"


def rewrite_policy(clinic: Clinic, name: str, value: str) -> None:
    toml = clinic.folder / "node.toml"
    text, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", toml.read_text())
    assert found == 1
    toml.write_text(text)


@pytest.mark.parametrize("codes", [(), ("DUO:0000006",)], ids=["none declared", "health"])
def test_rule__what_no_program_can_know__is_for_a_person_all_the_same(
    clinic: Clinic, codes: tuple[str, ...]
) -> None:
    """Once, data for health research after an ethics approval went by a rule that asked nobody."""
    rewrite_policy(clinic, "permits", '["DUO:0000006", "DUO:0000021"]')
    terms = clinic.paid(clinic.spec(purpose_codes=codes))
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Waiting)


def test_month__what_a_lapsed_reservation_may_reserve_again__is_counted(clinic: Clinic) -> None:
    """Once, two jobs of epsilon 1 were both trained in a month of 1.2."""
    rewrite_policy(clinic, "max_epsilon_per_month", "1.2")
    there = clinic.room()
    first, second = clinic.paid(clinic.spec(epsilon=1.0)), clinic.paid(clinic.spec(epsilon=1.0))
    assert isinstance(admit(there, first.to_json(), GRAPH, WEIGHTS), Signed)
    train(there, first.job_id.hex(), 1, weights())
    there.ledger.free_idle(time.time() + 1)
    said = admit(there, second.to_json(), GRAPH, WEIGHTS)
    assert isinstance(said, Refused) and "of 30 days, with this job" in said.reason


FIELDS = [name for name in RULE_FIELDS if name != "name"]


@pytest.mark.parametrize("missing", FIELDS)
def test_rule__that_leaves_something_to_be_guessed__is_refused_by_name(
    clinic: Clinic, missing: str
) -> None:
    lines = (clinic.folder / "node.toml").read_text().splitlines()
    start = lines.index("[[rules]]")
    kept = [line for i, line in enumerate(lines) if i < start or not line.startswith(missing)]
    (clinic.folder / "node.toml").write_text("\n".join(kept))
    with pytest.raises(ConfigError, match=f"rules 1: {missing} is missing; a rule says everything"):
        config.read(clinic.folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('purposes = ["*"]\nmodels', 'purposes = ["DUO:9999999"]\nmodels', "not a code that a job"),
        ('models = ["*"]\nmax_epsilon =', "models = []\nmax_epsilon =", "is empty"),
        ("jobs_per_week = 1000", "jobs_per_week = 0", "must be a whole number from 1"),
        ("jobs_per_week =", "job_per_week =", "the nearest known one is rules 1: jobs_per_week"),
        ('datasets = ["*"]', 'datasets = ["heart"]', 'must be a dataset id, or "\\*"'),
        ("max_epsilon = 4.5", "max_epsilon = -1", "must be a number above 0"),
    ],
)  # fmt: skip
def test_rule__that_says_nonsense__is_refused_by_name(
    clinic: Clinic, old: str, new: str, said: str
) -> None:
    rewrite(clinic, old, new)
    with pytest.raises(ConfigError, match=said):
        config.read(clinic.folder)


@given(
    st.sampled_from(FIELDS),
    st.floats(0.01, 50),
    st.integers(0, 50),
)
def test_rule__takes_a_job__only_where_every_one_of_its_limits_holds(
    narrowed: str, epsilon: float, taken: int
) -> None:
    """A rule with one narrower limit never takes what the wider one does not."""
    narrow: dict[str, Any] = {
        "datasets": ("9",),
        "buyers": ("0x" + "2" * 40,),
        "purposes": ("Care",),
        "models": ("cd" * 32,),
        "max_epsilon": 0.5,
        "jobs_per_week": 1,
    }
    request = replace(REQUEST, epsilon=epsilon)
    wide = RULE.takes(7, request, taken)
    assert wide == (epsilon <= 2.0 and taken < 3)
    assert RULE.takes(7, request, taken) or not replace(RULE, **{narrowed: narrow[narrowed]}).takes(
        7, request, taken
    )
    assert not RULE.takes(7, replace(request, graph=None), 0), "a model that nobody has seen"


def test_rule__its_code_written_as_a_text__does_not_hide_other_codes() -> None:
    rule = replace(RULE, purposes=("DUO:0000006",))
    asked = replace(REQUEST, purpose="DUO:0000006", purpose_codes=("DUO:0000006",))
    assert rule.takes(7, asked, 0)
    assert not rule.takes(7, replace(asked, purpose_codes=("DUO:0000011",)), 0)
    assert not rule.takes(7, replace(asked, purpose_codes=()), 0)


# -- policy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('losses = ["squared_error"]', "loss=binary_cross_entropy is not one"),
        (f'models = ["{"ab" * 32}"]', "is not a model that is trained here"),
        ("least_price_units = 1000001", "price_units=1000000 is less than the 1000001"),
        ("max_epsilon_per_month = 0.5", "of 30 days, with this job, is more than the 0.5"),
        ("max_epsilon_lifetime = 0.5", "a lifetime epsilon of"),
        ('permits = ["DUO:0000006", "DUO:0000046"]', "DUO:0000046 \\(NCU\\): no commercial use"),
    ],
)
def test_policy_of_one_dataset__refuses_by_its_own_line_and_without_a_restart(
    clinic: Clinic, line: str, said: str
) -> None:
    there = clinic.room()
    with (clinic.folder / "node.toml").open("a") as toml:
        toml.write(f"\n[dataset.{clinic.dataset_id}]\n{line}\n")
    spec = replace(clinic.spec(), purpose_codes=("DUO:0000006",))
    answer = admit(there, clinic.paid(spec).to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and answer.signature
    assert re.search(said, answer.reason)


def test_models__by_name__are_those_and_no_others(clinic: Clinic) -> None:
    rewrite(clinic, 'models = ["*"]   ', 'models = ["logistic_regression"]   ')
    taken = clinic.paid()
    assert isinstance(admit(clinic.room(), taken.to_json(), GRAPH, WEIGHTS), Signed)
    graph, start = export_model(build_family("mlp", 2), zeros(1, 2))
    hashes = {"graph_hash": sha256_hex(graph), "weights_hash": sha256_hex(start)}
    terms = clinic.paid(clinic.spec(**hashes))
    assert "is not a model that is trained here" in refusal(clinic, terms, graph, start)
    rewrite(clinic, 'models = ["logistic_regression"]', 'models = ["mlp"]')
    assert isinstance(
        admit(clinic.room(), clinic.paid(clinic.spec(**hashes)).to_json(), graph, start), Signed
    )
    rewrite(clinic, 'models = ["mlp"]', 'models = ["resnet"]')
    with pytest.raises(
        ConfigError, match="must be the SHA-256 of a graph, logistic_regression, mlp"
    ):
        clinic.room()


def test_policy__is_broken_by_a_slip__the_last_good_one_stays(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    there, terms = clinic.room(), clinic.paid()
    rewrite(clinic, "max_epsilon_per_job = 4.5", 'max_epsilon_per_job = "all"')
    answer = admit(there, terms.to_json(), GRAPH, WEIGHTS)
    assert isinstance(answer, Signed) and "the policy stays as it was" in caplog.text


def test_policy__changes__are_said_key_by_key(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    there = clinic.room()
    rewrite(clinic, "max_job_minutes = 240", "max_job_minutes = 10")
    there.refresh()
    assert "policy.max_job_minutes: 240 -> 10" in caplog.text


@pytest.mark.parametrize(
    "wrong", ["mon", "mon-fri", "xyz 10:00-12:00", "mon 25:00-26:00", "mon 10:00-10:00"]
)
def test_begin__that_is_no_span__is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        span(wrong)


def test_begin__over_midnight_and_over_the_week__as_written() -> None:
    night = ["fri-mon 20:00-06:00"]
    assert may_begin(night, 4, 20 * 60) and may_begin(night, 5, 0) and may_begin(night, 1, 5 * 60)
    assert not may_begin(night, 4, 5 * 60) and not may_begin(night, 1, 21 * 60)
    assert not may_begin(night, 3, 23 * 60) and may_begin([], 3, 0)


def test_jobs_begin_at_night__an_approved_one_waits_for_it(
    asking: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, there = sent(asking)
    run("approve", str(asking.folder), terms.job_id.hex())
    rewrite(asking, "begin = []", 'begin = ["mon-sun 20:00-06:00"]')
    monkeypatch.setattr(admission, "may_begin", lambda *_: False)
    answer = ask(there, terms.job_id.hex())
    assert isinstance(answer, Waiting) and "jobs begin mon-sun 20:00-06:00" in answer.reason
    monkeypatch.setattr(admission, "may_begin", lambda *_: True)
    assert isinstance(ask(there, terms.job_id.hex()), Signed)


# -- purposes --------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([*PERMISSIONS, *MODIFIERS]), max_size=4, unique=True),
    st.lists(st.sampled_from([*INTENTS]), min_size=1, max_size=4, unique=True),
)
def test_match__narrower_permissions__never_allow_more(permits: list[str], asks: list[str]) -> None:
    """Taking a permission away, or adding a modifier, never turns a no into a yes."""
    against, _ = match(permits, asks)
    for i, code in enumerate(permits):
        rest = [*permits[:i], *permits[i + 1 :]]
        if code in PERMISSIONS and rest:
            assert not against or match(rest, asks)[0]
        if code in MODIFIERS and rest:
            assert set(match(rest, asks)[0]) <= set(against)


@pytest.mark.parametrize(
    ("permits", "asks", "no", "look"),
    [
        (["DUO:0000042"], ["DUO:0000006"], False, False),
        (["DUO:0000006"], ["DUO:0000042"], True, False),
        (["DUO:0000006"], ["DUO:0000043"], True, False),  # care is no research
        (["DUO:0000006", "DUO:0000043"], ["DUO:0000043"], False, False),
        (["DUO:0000006", "DUO:0000043"], ["DUO:0000006"], False, False),  # it allows more, not less
        (["DUO:0000004"], ["DUO:0000043"], False, False),
        (["DUO:0000006"], ["DUO:0000011"], True, False),
        (["DUO:0000004"], ["DUO:0000011"], False, False),
        (["DUO:0000007", "MONDO:0005148"], ["DUO:0000007", "MONDO:0005148"], False, False),
        (["DUO:0000007", "MONDO:0005148"], ["DUO:0000007", "MONDO:0004979"], False, True),
        (["DUO:0000007", "MONDO:0005148"], ["DUO:0000006"], True, False),
        (["DUO:0000042", "DUO:0000018"], ["DUO:0000006"], True, False),
        (["DUO:0000042", "DUO:0000045"], ["DUO:0000006", "DUO:0000045"], False, False),
        (["DUO:0000042", "DUO:0000015"], ["DUO:0000042", "DUO:0000015"], True, False),
        (["DUO:0000042", "DUO:0000021"], ["DUO:0000006"], False, True),
        (["DUO:0000042"], [], False, True),
        (["DUO:0000006"], ["XX:0000000"], True, False),  # what no one knows allows nothing
        (["DUO:0000006"], ["DUO:0000044"], True, False),  # nor does what narrows data
        (["DUO:0000006"], ["DUO:0000045"], False, True),  # says who asks, and not what for
        (["DUO:0000006", "DUO:0000046"], ["DUO:0000045"], True, True),
        (["DUO:0000011"], ["MONDO:0005148"], True, False),  # a disease is DUO:0000007
        (["DUO:0000006"], ["MONDO:0005148"], False, False),
        (["DUO:0000007", "MONDO:0005148"], ["DUO:0000007"], False, True),  # which is not said
        ([], ["DUO:0000011"], False, False),
    ],
)  # fmt: skip
def test_match__by_the_ontology(permits: list[str], asks: list[str], no: bool, look: bool) -> None:
    against, notes = match(permits, asks)
    assert (bool(against), bool(notes)) == (no, look)


def test_problem__unknown_or_lonely_codes__are_named() -> None:
    known = [*PERMISSIONS, *MODIFIERS]
    assert problem(["DUO:0000042", "DUO:0000018"], known) is None
    assert "is not one of" in (problem(["DUO:1"], known) or "")
    assert "go together" in (problem(["DUO:0000007"], known) or "")
    assert "twice" in (problem(["DUO:0000042"] * 2, known) or "")


# -- results that are held -------------------------------------------------------------------------


def test_hold_results__the_signature_leaves_when_a_person_lets_it_go(clinic: Clinic) -> None:
    rewrite(clinic, "hold_results = false", "hold_results = true")
    terms = clinic.paid(clinic.spec(rounds=1))
    there, job = clinic.room(), terms.job_id.hex()
    admit(there, terms.to_json(), GRAPH, WEIGHTS)
    reply = train(there, job, 1, weights())
    arrays = from_safetensors(reply.model)
    spec = JobSpec.from_dict(terms.spec)
    part = part_of(clinic, 1, reply, reply.compute_seconds)
    report, _ = build(
        terms, spec, model_hash(arrays), [Round(1, 0.5, 0.1)], {clinic.dataset_id: part}
    )
    assert isinstance(attest(there, job, arrays, report), Waiting)
    assert isinstance(ask(there, job), Waiting)
    assert "is held: datahub node release" in run("inbox", str(clinic.folder)).output.replace(
        "\n", " "
    )
    assert run("release", str(clinic.folder), job, "--by", "DPO").exit_code == 0
    signed = ask(there, job)
    assert isinstance(signed, Signed) and signed == attest(there, job, arrays, report)


# -- people are told -------------------------------------------------------------------------------


def test_webhook__is_told_which_job_and_until_when_and_nothing_of_data(
    asking: Clinic,
) -> None:
    got: list[dict[str, str]] = []
    there = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()
            there.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (asking.folder / "node.toml").open("a") as toml:
            toml.write(f'[notify]\nwebhook = "http://127.0.0.1:{server.server_port}/x"\n')
        terms, _ = sent(asking)
        assert there.wait(10)
        server.shutdown()
    (said,) = got
    assert set(said) == {"event", "node", "job", "dataset", "until", "look"}
    assert said["job"] == terms.job_id.hex() and said["dataset"] == str(asking.dataset_id)


def test_webhook__that_hangs_or_is_not_there__delays_no_answer(asking: Clinic) -> None:
    with (asking.folder / "node.toml").open("a") as toml:
        toml.write('[notify]\nwebhook = "https://127.0.0.1:9/x"\n')
    sent(asking)
