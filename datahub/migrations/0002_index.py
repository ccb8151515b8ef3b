"""What the chain says is indexed into tables of its own; manifests are kept by their hash, and the
catalogue is searched in a table. Datasets come back from the chain; what nodes and buyers have sent
stays.

Revision ID: 0002
Revises: 0001
"""

import hashlib
import time
from typing import Any

import sqlalchemy as sa
from alembic import op

from datatokens.terms import canonical_json
from datatokens.wire import parse

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Columns = list[Any]  # of alembic's create_table
WORD = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """From 0001: with or without the table `dataset_schema`."""
    connection = op.get_bind()
    manifests = connection.execute(
        sa.text("SELECT manifest_hash, manifest FROM dataset WHERE manifest IS NOT NULL")
    ).all()
    op.drop_table("dataset")
    if "dataset_schema" in sa.inspect(connection).get_table_names():
        op.drop_table("dataset_schema")
    for name, columns in TABLES.items():
        op.create_table(name, *(column.copy() for column in columns))
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)
    kept = {
        row.manifest_hash: {
            "manifest_hash": row.manifest_hash,
            "schema_hash": hashlib.sha256(
                canonical_json(parse(row.manifest.encode())["schema"])
            ).hexdigest(),
            "document": row.manifest,
            "kept_at": time.time(),  # it was not written down before
        }
        for row in manifests
    }
    if kept:
        op.bulk_insert(sa.table("manifest", *map(sa.column, KEPT)), list(kept.values()))


def _text(*names: str, **more: Any) -> Columns:
    return [sa.Column(name, sa.String(), nullable=False, **more) for name in names]


def _whole(*names: str, **more: Any) -> Columns:
    return [sa.Column(name, sa.Integer(), nullable=False, **more) for name in names]


def _large(*names: str, **more: Any) -> Columns:
    return [sa.Column(name, sa.BigInteger(), nullable=False, **more) for name in names]


KEPT = ("manifest_hash", "schema_hash", "document", "kept_at")
KEY: dict[str, Any] = {"primary_key": True}
NUMBER: dict[str, Any] = {"primary_key": True, "autoincrement": False}
TABLES: dict[str, Columns] = {
    "dataset": [
        *_whole("dataset_id", **KEY),
        *_text("owner", "datatoken", "node", "price_units"),
        *_whole("contributor_bps"),
        *_text("manifest_hash"),
        *_whole("state"),
        *_large("epsilon_micro"),
        *_whole("jobs_attested", "accepted", "settled", "failed", "disputed", "lost"),
    ],
    "manifest": [
        *_text("manifest_hash", **KEY),
        *_text("schema_hash", "document"),
        sa.Column("kept_at", sa.Float(), nullable=False),
    ],
    "entry": [
        *_whole("dataset_id", **KEY),
        sa.Column("on_sale", sa.Boolean(), nullable=False),
        *_text("title", "hospital", "kind", "unit", "node", "schema_hash"),
        *_large("persons", "price_rank"),
        sa.Column("epsilon_left", sa.Float(), nullable=False),
        sa.Column("offer_ends", sa.Integer(), nullable=True),
    ],
    "entry_word": [
        sa.Column("word", WORD, primary_key=True, nullable=False),
        *_whole("dataset_id", **KEY),
    ],
    "lease": [
        *_text("name", **KEY),
        *_text("holder"),
        sa.Column("until", sa.Float(), nullable=False),
    ],
    "repeat": [
        *_text("name", **KEY),
        *_text("asked", "answer"),
        sa.Column("at", sa.Float(), nullable=False),
    ],
    "sign_in": [
        *_text("text_hash", **KEY),
        *_text("account"),
        sa.Column("ends", sa.Float(), nullable=False),
    ],
    "browser_session": [
        *_text("token_hash", **KEY),
        *_text("account"),
        sa.Column("ends", sa.Float(), nullable=False),
    ],
    "webhook": [*_text("account", **KEY), *_text("url", "secret")],
    "delivery": [
        *_whole("number", **KEY),
        *_text("account", "body"),
        *_whole("tries"),
        sa.Column("due", sa.Float(), nullable=False),
    ],
    "index_seen": [*_whole("only", **KEY), *_large("version"), *_text("market")],
    "index_block": [*_large("number", **NUMBER), *_text("hash")],
    "index_event": [
        *_large("block", **NUMBER),
        *_whole("position", **KEY),
        *_text("name", "about", "args"),
    ],
    "index_job": [
        *_text("job_id", **KEY),
        *_text("buyer", "status", "amount_units"),
        *_large("deadline", "block"),
        *_text("accepted", "model_hash", "report_hash", "worked"),
        *_large("ended"),
        *_whole("paid_bps"),
        *_text("paid_units", "change_units"),
    ],
    "index_line": [
        *_text("job_id", **KEY),
        *_whole("position", **KEY),
        *_whole("dataset_id"),
        *_text("price_units", "compute_units", "reward_units"),
        *_large("epsilon_micro"),
    ],
    "index_epoch": [
        *_whole("dataset_id", "epoch", **KEY),
        *_text("root"),
        *_large("since"),
        *_text("credited_units"),
    ],
    "index_claimed": [
        *_whole("dataset_id", "epoch", **KEY),
        *_text("account", **KEY),
        *_text("units"),
    ],
    "index_key": [
        *_text("key", **KEY),
        *_whole("hospital_id"),
        *_large("valid_from", "valid_until"),
        sa.Column("revoked", sa.Boolean(), nullable=False),
    ],
    "index_hospital": [
        *_whole("hospital_id", **KEY),
        *_text("owner", "minute_units", "hardware"),
    ],
}
INDEXES = [
    ("ix_dataset_owner", "dataset", ["owner"]),
    ("ix_dataset_node", "dataset", ["node"]),
    ("ix_dataset_manifest_hash", "dataset", ["manifest_hash"]),
    ("ix_manifest_schema_hash", "manifest", ["schema_hash"]),
    ("entry_schema", "entry", ["schema_hash", "on_sale", "persons"]),
    *(
        (f"entry_{column}", "entry", ["on_sale", column, "dataset_id"])
        for column in ("title", "price_rank", "persons", "epsilon_left")
    ),
    ("ix_entry_node", "entry", ["node"]),
    ("ix_entry_offer_ends", "entry", ["offer_ends"]),
    ("entry_word_of", "entry_word", ["dataset_id", "word"]),
    ("ix_index_event_about", "index_event", ["about"]),
    ("ix_index_job_buyer", "index_job", ["buyer"]),
    ("index_line_dataset", "index_line", ["dataset_id", "epsilon_micro"]),
    ("ix_index_key_hospital_id", "index_key", ["hospital_id"]),
    ("ix_job_quoted_at", "job", ["quoted_at"]),
    ("ix_repeat_at", "repeat", ["at"]),
    ("ix_sign_in_ends", "sign_in", ["ends"]),
    ("ix_browser_session_ends", "browser_session", ["ends"]),
    ("ix_delivery_due", "delivery", ["due"]),
]
