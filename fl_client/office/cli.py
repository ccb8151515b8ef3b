"""The commands of a hospital's IT (`datahub node ...`). Parses and prints only; datahub/cli.py maps
errors to exit codes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from datatokens.chain.connection import connect
from datatokens.deploy import verify
from datatokens.terminal import Terminal
from fl_client.data.manifests import (
    MOST_RECORDS,
    PLATFORM_MINIMUM_PERSONS,
    USUAL_RECORDS,
    Manifest,
)
from fl_client.data.sources import read_source
from fl_client.errors import ConfigError, DatasetError
from fl_client.node import config as node_config
from fl_client.node.contacts import ago
from fl_client.office import (
    backup_cli,
    inbox_cli,
    log_cli,
    machine_cli,
    pack_cli,
    page_cli,
    table_cli,
)
from fl_client.office.preflight import FAILED
from fl_client.office.table_cli import SourceFile, TableFile, given_source, read_schema

if TYPE_CHECKING:
    from fl_client.office.state import State

node = typer.Typer(help="A hospital's data node.", no_args_is_help=True)
console = Terminal()
MAX_OVERLAP_HOURS = 24 * 90
node.command("describe")(table_cli.describe)
node.command("draft-schema")(table_cli.draft_schema)
node.command("measure")(table_cli.measure)
node.command("schema")(table_cli.schema)
node.command("check")(table_cli.check)
node.command("walls")(machine_cli.walls)
node.command("backup")(backup_cli.back_up)
node.command("restore")(backup_cli.restore)
node.command("preflight")(machine_cli.preflight)
node.command("service")(machine_cli.service)
node.command("inbox")(inbox_cli.show)
node.command("approve")(inbox_cli.approve)
node.command("refuse")(inbox_cli.refuse)
node.command("release")(inbox_cli.release)
node.command("page")(page_cli.page)
node.command("compliance-pack")(pack_cli.compliance_pack)
node.add_typer(log_cli.audit_log, name="audit-log")


@node.callback()
def private() -> None:
    """A hospital's data node."""
    os.umask(0o077)  # whatever is written in a node's folder is its user's alone


Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
DatasetId = Annotated[int, typer.Argument(help="The dataset's id.")]
KeyFile = Annotated[
    Path, typer.Option(help="File with the owner's private key; used once, not copied.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@node.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The hospital's name as the catalogue shows it.")],
    hub: Annotated[str, typer.Option(help="URL of the hub.")],
    chain: Annotated[str, typer.Option(help="URL of your own chain connection (JSON-RPC).")],
    as_json: Json = False,
) -> None:
    """Make a node: its keys and node.toml. Compare the contract addresses it prints with those in
    your contract.
    """
    from fl_client.node.listing import hub_request

    network = hub_request(hub, "GET", "/api/v1/network")
    found = verify(connect(chain), network["registry"], network["market"])
    # what the contracts say of themselves, not what the hub says of them
    network |= {"chain_id": found.chain_id, "payment_token": found.payment_token}
    made = node_config.create(folder, name=name, hub=hub, chain=chain, network=network)
    checks = machine_cli.checks_of(made)
    if as_json:
        facts = {"folder": str(folder), "node": made.node_address}
        facts |= {"registry": made.registry, "market": made.market}
        typer.echo(json.dumps({**facts, "preflight": [asdict(one) for one in checks]}))
        return
    console.print(f"node {name!r} in {folder}: node key {made.node_address}")
    console.print(
        f"registry {made.registry}, market {made.market}: their code is that of this version of "
        "datahub"
    )
    machine_cli.print_checks(checks)
    if any(one.result == FAILED for one in checks):
        console.print(f"put right what failed, then: datahub node preflight {folder}")
    console.print(
        "next: datahub node describe TABLE > SOURCE.toml, then datahub node add-dataset "
        f"{folder} --source SOURCE.toml --schema SCHEMA.json ...",
        soft_wrap=True,
    )


@node.command("add-dataset")
def add_dataset(
    folder: Folder,
    schema: Annotated[
        Path, typer.Option(help="Schema JSON: features with public constants, target.")
    ],
    name: Annotated[str, typer.Option(help="The dataset's name.")],
    price_units: Annotated[
        int, typer.Option(help="Price of one job, base units of the payment token.")
    ],
    contributors: Annotated[Path, typer.Option(help="CSV file with the header account,weight.")],
    owner_key_file: Annotated[
        Path, typer.Option(help="File with the owner's private key; used once, not copied.")
    ],
    file: TableFile = None,
    source: SourceFile = None,
    description: Annotated[str, typer.Option(help="What the catalogue says about it.")] = "",
    country: Annotated[
        str, typer.Option(help="Where the patients were treated, as DE (ISO 3166).")
    ] = "",
    condition: Annotated[
        list[str] | None,
        typer.Option(help="What the patients have, in words or a code; may be given again."),
    ] = None,
    contributor_bps: Annotated[int, typer.Option(help="Contributors' part, of 10000.")] = 5000,
    lifetime_epsilon: Annotated[
        float, typer.Option(help="What all jobs together may ever cost a patient.")
    ] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is counted.")] = 1e-5,
    minimum_persons: Annotated[
        int, typer.Option(help="Never train on fewer patients.")
    ] = PLATFORM_MINIMUM_PERSONS,
    compute_rate_units: Annotated[
        int, typer.Option(help="Price of every started minute of training, base units.")
    ] = 0,
    patient_column: Annotated[
        str,
        typer.Option(
            help="With --file: column that tells patients apart. Without it privacy protects "
            "single records."
        ),
    ] = "",
    records_per_patient: Annotated[
        int | None,
        typer.Option(
            help="Where patients are told apart: how many records of one patient count, the "
            f"first ones of the file; 1 to {MOST_RECORDS}, default {USUAL_RECORDS}."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List a table as a dataset. The table stays; a noised count and the schema become public."""
    from fl_client.node.listing import Listing, list_dataset, read_contributors

    table = given_source(file, source, patient_column)
    if records_per_patient is not None and not table.patients:
        raise ConfigError(
            f"records_per_patient={records_per_patient} needs --patient-column; without one each "
            "record is a patient of its own"
        )
    listing = Listing(
        name,
        description,
        price_units,
        contributor_bps,
        lifetime_epsilon,
        delta,
        minimum_persons,
        compute_rate_units=compute_rate_units,
        records_per_patient=records_per_patient or (USUAL_RECORDS if table.patients else 1),
        country=country,
        conditions=tuple(condition or ()),
    )
    entry = list_dataset(
        node_config.read(folder),
        owner_key_file.read_text().strip(),
        table,
        read_schema(schema),
        listing,
        read_contributors(contributors),
    )
    if as_json:
        facts = {"dataset_id": entry.dataset_id, "persons": entry.manifest.persons}
        typer.echo(json.dumps({**facts, "schema": entry.manifest.schema.hash}))
        return
    console.print(
        f"dataset {entry.dataset_id} is listed with about {entry.manifest.persons} "
        f"{entry.manifest.unit}s (noised){_left_out(entry.manifest)}"
    )
    if not table.patients:
        console.print(
            "privacy protects each record; if patients have several, list it with --patient-column "
            "instead"
        )
    console.print(f"next: datahub node start {folder}")


def _left_out(manifest: Manifest) -> str:
    """What a listing says of those whom no job sees."""
    many = manifest.left_out
    return "" if many is None else f" and about {many} left out, as they lack a value (noised)"


@node.command("replace-dataset")
def replace_dataset_(
    folder: Folder,
    dataset_id: DatasetId,
    owner_key_file: KeyFile,
    file: TableFile = None,
    source: SourceFile = None,
    as_json: Json = False,
) -> None:
    """Make a changed or moved table the next version of its dataset. Its patients keep their
    budgets.
    """
    from fl_client.node.versions import replace_dataset

    if (file is None) == (source is None):
        raise ConfigError("say --file TABLE or --source TABLE.toml, and not both")
    new = file if file is not None else read_source(cast(Path, source))
    entry, version = replace_dataset(
        node_config.read(folder), owner_key_file.read_text().strip(), dataset_id, new
    )
    persons, unit = entry.manifest.persons, entry.manifest.unit
    if as_json:
        facts = {"dataset_id": dataset_id, "manifest_version": version, "persons": persons}
        more = {"left_out": entry.manifest.left_out, "file": str(entry.source.file or "")}
        typer.echo(json.dumps({**facts, **more}))
        return
    console.print(
        f"dataset {dataset_id} is {entry.source.file or entry.source.where} now, with about "
        f"{persons} {unit}s (noised){_left_out(entry.manifest)}; "
        f"manifest version {version}",
        highlight=False,
        soft_wrap=True,
    )


@node.command("remove-dataset")
def remove_dataset_(
    folder: Folder, dataset_id: DatasetId, owner_key_file: KeyFile, as_json: Json = False
) -> None:
    """Retire a dataset on the chain, for good, and serve it no more. What it has spent stays."""
    from fl_client.node.versions import remove_dataset

    remove_dataset(node_config.read(folder), owner_key_file.read_text().strip(), dataset_id)
    if as_json:
        typer.echo(json.dumps({"dataset_id": dataset_id, "removed": True}))
        return
    console.print(f"dataset {dataset_id} is retired and no longer served")


@node.command("withdraw-patient")
def withdraw_patient_(
    folder: Folder,
    identifier: Annotated[
        str, typer.Argument(help="The patient as the patient column has it; - reads it from stdin.")
    ],
    as_json: Json = False,
) -> None:
    """Leave a patient out of all datasets from the next round on, and say which jobs had used the
    patient. Nobody outside is told.
    """
    from fl_client.node.versions import withdraw_patient

    if identifier == "-":
        identifier = sys.stdin.readline()
    done = withdraw_patient(node_config.read(folder), identifier)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    numbers = ", ".join(str(one) for one in done.datasets) or "(none now, nor in a later version)"
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"the patient takes no part any more in dataset {numbers}")
    for job in done.jobs:
        model = f"model {job.model_hash}" if job.model_hash else "no model attested here"
        where = f"dataset {job.dataset_id} ({job.dataset})"
        say(f"had been used on {job.date} by job {job.job_id} over {where}: {model}")
    if not done.jobs:
        say("no job had used the patient")
    say("the models of these jobs stay as they are, and so does what they have spent")
    say(
        "which account stands for the patient, only you know: where one does, post the list "
        f"without it: datahub owner contributors {folder} DATASET LIST.csv --owner-key-file KEY"
    )


@node.command("reconcile")
def reconcile_(folder: Folder, as_json: Json = False) -> None:
    """After a ledger was lost or put back from a backup: charge what it lacks, at its worst."""
    from datatokens.bindings.registry import Registry
    from datatokens.public_ledger import Watch
    from fl_client.node import witness
    from fl_client.node.audit_log import AuditLog, LogError
    from fl_client.node.entries import removed
    from fl_client.node.listing import terms_from
    from fl_client.node.reconcile import reconcile
    from fl_client.node.served import anchors, open_ledger, read_table

    configuration = node_config.read(folder)
    ledger, secret = open_ledger(folder, mend=True)
    tables = {}
    for entry in configuration.datasets:
        try:
            tables[entry.dataset_id] = read_table(folder, entry, secret)
        except DatasetError as error:
            console.print(f"dataset {entry.dataset_id}: {error}", soft_wrap=True, highlight=False)
    since = min((entry.since for entry in configuration.datasets), default=0)
    chain = connect(configuration.chain)
    seen = Watch(chain, configuration.market, since).look()
    registry = Registry(chain, configuration.registry)
    versions = {
        entry.dataset_id: registry.standing(entry.dataset_id).version
        for entry in configuration.datasets
    }
    charged = reconcile(
        configuration,
        ledger,
        tables,
        seen,
        versions,
        lambda job: terms_from(configuration.hub, job),
    )
    audit_log = AuditLog(folder)
    try:
        audit_log.verify(anchors(configuration))
    except LogError as error:
        audit_log.mend(str(error), anchors(configuration))
        typer.echo(f"the audit log goes on from a stated break: {error}", err=as_json)
    listed = [*configuration.datasets, *removed(folder)]
    if lost := witness.lacking(audit_log, witness.on_chain(listed, seen)):
        sentence = (
            f"the audit log lacks what came after a copy of it: {len(lost)} reports that the chain "
            "has this node's signature under; it says so now, and goes on"
        )
        typer.echo(sentence, err=as_json)
    witness.reconciled(audit_log, [asdict(one) for one in charged], lost)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in charged]))
        return
    for one in charged:
        console.print(
            f"dataset {one.dataset_id}: charged {one.what}; lifetime epsilon "
            f"{one.epsilon_before:.3f} -> {one.epsilon_after:.3f}",
            soft_wrap=True,
            highlight=False,
        )
    console.print("the ledger is whole" + ("" if charged else "; nothing was lacking"))


@node.command("rotate-key")
def rotate_key_(
    folder: Folder,
    owner_key_file: Annotated[
        Path, typer.Option(help="File with the owner's private key; used once, not copied.")
    ],
    overlap_hours: Annotated[
        float, typer.Option(help="How long the old key may still accept jobs quoted with it.")
    ] = 24,
    stolen: Annotated[
        bool, typer.Option("--stolen", help="Revoke the old key at once, and what it accepted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Give the node a new signing key, and all its datasets that key. Restart the node
    afterwards.
    """
    from fl_client.node.listing import rotate_key

    if not 0 <= overlap_hours <= MAX_OVERLAP_HOURS:
        raise ConfigError(f"overlap_hours={overlap_hours:g} must be from 0 to {MAX_OVERLAP_HOURS}")
    new = rotate_key(
        node_config.read(folder),
        owner_key_file.read_text().strip(),
        round(overlap_hours * 3600),
        stolen,
    )
    if as_json:
        typer.echo(json.dumps({"node": new, "revoked": stolen}))
        return
    console.print(
        f"the node key is {new} now; the one before is "
        f"{'revoked' if stolen else 'kept for its jobs'}"
    )
    console.print(f"next: restart it: datahub node start {folder}")


@node.command()
def offer(
    folder: Folder,
    owner_key_file: Annotated[
        Path, typer.Option(help="File with the owner's private key; used once, not copied.")
    ],
    hardware: Annotated[str, typer.Option(help="The machine in words, up to 256 bytes.")],
    minute_units: Annotated[
        int, typer.Option(help="Usual price of a minute of training, base units.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Say on-chain what machine this hospital trains on, and what it usually costs. Each dataset's
    own rate decides.
    """
    from datatokens.bindings.nodes import NodeRegistry
    from fl_client.node.listing import enrol

    configuration = node_config.read(folder)
    owner = connect(configuration.chain, owner_key_file.read_text().strip())
    hospital_id = enrol(configuration, owner)
    nodes = NodeRegistry(owner, configuration.registry)
    nodes.set_offer(hospital_id, configuration.payment_token, minute_units, hardware)
    if as_json:
        typer.echo(json.dumps({"hospital_id": hospital_id, "hardware": hardware}))
        return
    console.print(f"hospital {hospital_id} offers: {hardware}")


@node.command()
def start(folder: Folder) -> None:
    """Serve the node's datasets until stopped. Dials out only; listens on no port."""
    from fl_client.node.contacts import Diary
    from fl_client.node.handlers import make_app
    from fl_client.node.listing import register_node
    from fl_client.node.publishing import Publisher
    from fl_client.node.room import DataRoom
    from fl_client.node.skew import clock_problem
    from fl_client.node.supernode import serve, stop_soon

    form = "%(asctime)s %(name)s %(levelname)s %(message)s"
    logging.basicConfig(
        level=logging.INFO, format=form, force=True
    )  # Flower has set up its own by now
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    node_config.tighten(folder)
    configuration = node_config.read(folder)
    if not configuration.datasets and not configuration.unusable:
        raise ConfigError(
            f"{folder} has no dataset yet; list one with: datahub node add-dataset {folder} ..."
        )
    chain = connect(configuration.chain)
    if chain.chain_id != configuration.chain_id:
        raise ConfigError(
            f"chain_id={configuration.chain_id} in node.toml, but {configuration.chain} is "
            f"{chain.chain_id}"
        )
    verify(chain, configuration.registry, configuration.market)
    if wrong := clock_problem(configuration.superlink, chain.newest_block_time()):
        logging.getLogger("datahub.node").error("%s", wrong)
    room = DataRoom(configuration, chain)
    if not room.datasets:
        raise ConfigError("no dataset can be served: " + "; ".join(room.skipped.values()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_soon(room.stopping))
    diary = Diary(folder, lambda: chain.answered_at, lambda: room.workers.missing)
    register_node(configuration)
    diary.spoke("hub")
    diary.keep(room.stopping)
    log = logging.getLogger("datahub.node")
    offers = Publisher(room, spoke=partial(diary.spoke, "hub"))

    def between() -> None:
        offers.look()
        room.look_at_sources()
        room.clear_inbox()

    serve(
        make_app(room, offers.soon),
        superlink=configuration.superlink,
        ca_file=configuration.ca_file,
        key=configuration.supernode_key,
        stop=room.stopping,
        between=between,
        spoke=partial(diary.spoke, "superlink"),
        on_connected=lambda node_id: log.info(
            "%s is connected as SuperNode %s", configuration.name, node_id
        ),
    )


@node.command("audit")
def audit_(
    epsilon: Annotated[
        float, typer.Option(help="What to claim, at delta, for the whole of the steps.")
    ] = 1.0,
    delta: Annotated[float, typer.Option(help="Delta.")] = 1e-5,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 10,
    sampling_rate: Annotated[
        float, typer.Option(help="Chance of each patient to be in a step.")
    ] = 1.0,
    canaries: Annotated[int, typer.Option(help="Made-up patients; more find more.")] = 5000,
    engine: Annotated[
        str, typer.Option(help="book-keeping, or hooks: the one that node.toml names.")
    ] = "book-keeping",
    search_seconds: Annotated[
        float,
        typer.Option(
            help="How long to search for graphs that move a sum by more than the clip; tracing and "
            "compiling them comes on top."
        ),
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack this machine's engine: does epsilon hold on made-up patients, and does one patient
    move a sum by at most the clip, whatever the graph? Touches no table; exit status 1 if not.
    """
    import torch

    from fl_client.privacy.accounting import calibrate
    from fl_client.privacy.adversary import survey
    from fl_client.privacy.audit import audit

    torch.set_flush_denormal(True)  # as jobs' workers do

    noise, _ = calibrate(epsilon, delta, sampling_rate, steps, 1, 1e-3)
    found = [
        audit(noise, sampling_rate, steps, delta, canaries=canaries, records=records, engine=engine)
        for records in (1, 3)
    ]
    shifts = survey(engine, search_seconds)
    if as_json:
        runs = [{**asdict(a), "convicted": a.convicted} for a in found]
        typer.echo(json.dumps({"runs": runs, "shifts": shifts}))
    else:
        table = Table(
            "records of each",
            "guessed right",
            "epsilon disproved",
            "epsilon claimed",
            "verdict",
            box=None,
        )
        for records, one in zip((1, 3), found, strict=True):
            verdict = "BROKEN" if one.convicted else "not disproved"
            table.add_row(
                str(records),
                f"{one.right} of {one.guesses}",
                f"{one.epsilon_disproved:.2f}",
                f"{one.epsilon_claimed:.2f}",
                verdict,
            )
        console.print(table)
        console.print(
            f"{found[0].canaries} made-up patients, confidence {found[0].confidence:.0%}; an audit "
            "can only convict"
        )
        attacks = Table("hostile graphs", "engine", "largest shift / allowed", "verdict", box=None)
        for key, shift in shifts.items():
            verdict = "BROKEN" if shift > 1 else "not broken"
            attacks.add_row(*key.split("."), f"{shift:.4f}", verdict)
        console.print(attacks)
    if any(one.convicted for one in found) or max(shifts.values()) > 1:
        raise typer.Exit(1)


@node.command()
def status(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """What each dataset has spent of its lifetime epsilon and earned, which jobs wait and are under
    way, and when the node last spoke with the hub, the SuperLink and the chain.

    "if pre-declared" is the tighter figure that would hold had all jobs been fixed in advance;
    nothing is admitted by it. Looks at the sources: reads files that were touched, runs queries.
    """
    from fl_client.office.state import look

    state = look(node_config.read(folder))
    lines = state.datasets
    if as_json:
        typer.echo(json.dumps(state.as_dict()))
        return
    table = Table(title=state.name)
    columns = (
        "dataset|epsilon spent|if pre-declared|with reserved|lifetime|delta|jobs|more like the last"
    )
    for column in columns.split("|"):
        table.add_column(column)
    for line in lines:
        table.add_row(
            f"{line['dataset_id']} {line['name']}",
            f"{line['epsilon_spent']:.3f}",
            f"{line['epsilon_pld']:.3f}",
            f"{line['epsilon_committed']:.3f}",
            f"{line['epsilon_lifetime']:g}",
            f"{line['delta']:g}",
            str(len(line["jobs"])),
            "" if line["jobs_left"] is None else str(line["jobs_left"]),
        )
    console.print(table)
    for line in lines:
        if line["not_served"]:
            console.print(
                f"dataset {line['dataset_id']} is not served: {line['not_served']}", soft_wrap=True
            )
        elif line["source_away"]:
            console.print(
                f"dataset {line['dataset_id']} is served as it was frozen: {line['source_away']}",
                soft_wrap=True,
            )
    for sentence in state.unread:
        console.print(f"not served: {sentence}", soft_wrap=True)
    _print_running(state)


def _print_running(state: State) -> None:
    """What goes on besides epsilon."""
    say = partial(console.print, soft_wrap=True)
    for line in state.datasets:
        if earned := line["earned"]:
            say(
                f"dataset {line['dataset_id']} has earned {earned['hospital_units']} units for the "
                f"hospital ({earned['withdrawn_units']} taken out) and "
                f"{earned['contributor_units']} for contributors, by {earned['jobs_settled']} jobs"
            )
    if state.chain_away:
        say(f"what was earned is not known now: {state.chain_away}")
    said = [f"{len(ids)} {what.replace('_', ' ')}" for what, ids in state.jobs.items()]
    say(f"jobs: {', '.join(said)}{'; see datahub node inbox' if state.jobs['waiting'] else ''}")
    if state.contacts is None:
        say("the node has not run here yet, or is of an older version")
        return
    when = partial(ago, now=state.at)
    say(
        f"the node runs since {when(state.contacts.started)}"
        if state.running
        else f"the node does not run; it was last seen {when(state.contacts.written)}"
    )
    for party, at in state.contacts.spoke.items():
        say(f"last answer of the {party}: {when(at)}")
    missing = state.contacts.walls
    if missing is None:
        say("walls: no job has needed them since it runs; try them: datahub node walls FOLDER")
    elif not missing:
        say("walls: all are there")
    for wall, why in (missing or {}).items():
        say(f"no wall around jobs' {wall}: {why}")
