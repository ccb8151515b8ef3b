"""The catalogue's own table: what each dataset is found, filtered and sorted by, and one page of
what was asked for, in a time that does not grow with the catalogue.

Knows nothing of the chain or of pages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, tuple_
from sqlmodel import Session, col, delete, func, select

from datahub.errors import BadRequest
from datahub.index.tables import DatasetRow
from datahub.market.tables import EntryRow, ManifestRow, OfferRow, WordRow
from datatokens.wire import parse

MOST_WORDS, LONGEST_WORD = 500, 40  # of one dataset that are searched, the first ones
MOST_ASKED = 8  # words of one search
# a search whose words are rarer, and that so few datasets fit, names them all
COMMON, FEW = 20_000, 500
AFTER_ALL = "\U0010ffff"
SORTS: dict[str, tuple[Any, bool]] = {  # name -> its column, whether it falls
    "name": (col(EntryRow.title), False),
    "price": (col(EntryRow.price_rank), False),
    "size": (col(EntryRow.persons), True),
    "epsilon": (col(EntryRow.epsilon_left), True),
    "newest": (col(EntryRow.dataset_id), True),
}


@dataclass(frozen=True)
class Asked:
    """What somebody looks for; None or "" is anything. `most_units`: price at most (base units);
    `persons` and `epsilon`: at least; `nodes`: of these node keys. With `all` what is not on sale
    too. `after`: the cursor that came with the page before.
    """

    text: str = ""
    schema: str = ""
    kind: str = ""
    unit: str = ""
    country: str = ""
    condition: str = ""
    most_units: float | None = None
    persons: float | None = None
    epsilon: float | None = None
    nodes: frozenset[str] | None = None
    all: bool = False
    sort: str = "name"
    after: str = ""


def words(*texts: str) -> list[str]:
    """The different words in these texts, in small letters, in their order."""
    found = (word[:LONGEST_WORD] for text in texts for word in re.findall(r"\w+", text.casefold()))
    return list(dict.fromkeys(found))


def refresh(session: Session, dataset_ids: Iterable[int]) -> None:
    """Make the entries of these datasets again."""
    for dataset_id in dataset_ids:
        session.exec(delete(WordRow).where(col(WordRow.dataset_id) == dataset_id))
        session.exec(delete(EntryRow).where(col(EntryRow.dataset_id) == dataset_id))
        if (row := session.get(DatasetRow, dataset_id)) is None:
            continue
        kept = session.get(ManifestRow, row.manifest_hash)
        manifest = parse(kept.document.encode()) if kept else {}
        offer = session.get(OfferRow, dataset_id)
        left, ends = _epsilon_left(manifest, offer)
        schema = manifest.get("schema") or {}
        session.add(
            EntryRow(
                dataset_id=dataset_id,
                on_sale=bool(kept) and row.state == 0,
                title=manifest.get("name", "").casefold()[:200],
                hospital=manifest.get("hospital", ""),
                kind="" if not kept else "pictures" if schema.get("picture") else "table",
                unit=manifest.get("unit", ""),
                node=row.node,
                schema_hash=kept.schema_hash if kept else "",
                persons=manifest.get("persons", 0),
                price_rank=min(int(row.price_units), 2**63 - 1),
                epsilon_left=left,
                offer_ends=ends,
            )
        )
        if kept:
            said = (manifest["name"], manifest["hospital"], manifest["description"])
            country, conditions = manifest.get("country", ""), manifest.get("conditions", ())
            columns = [one["name"] for one in (*schema.get("features", ()), schema["target"])]
            found = words(*said, *conditions, *columns)[:MOST_WORDS]
            marks = [_mark("country", country)] if country else []
            marks += [_mark("condition", one) for one in conditions]
            for word in dict.fromkeys([*found, *marks]):
                session.add(WordRow(word=word, dataset_id=dataset_id))
    session.flush()


def _epsilon_left(manifest: dict[str, Any], offer: OfferRow | None) -> tuple[float, int | None]:
    """What one more job may cost, as the node says, and until when that is good; the lifetime where
    it has not said.
    """
    if offer is not None:
        said = parse(offer.document.encode())
        if said["valid_until"] > time.time():
            left = said["epsilon_left"] if said["state"] == "open" else 0.0
            return float(left), int(said["valid_until"])
    return float(manifest.get("lifetime_epsilon", 0.0)), None


def forget_ended_offers(session: Session, most: int = 1000) -> int:
    """Make the entries again whose offer has ended since; how many."""
    ended = select(EntryRow.dataset_id).where(col(EntryRow.offer_ends) < time.time()).limit(most)
    found = session.exec(ended).all()
    refresh(session, found)
    return len(found)


def page(session: Session, asked: Asked, limit: int) -> tuple[list[int], str]:
    """The datasets that fit, in order, at most `limit`; and the cursor of the next page, "" for
    none. Raises BadRequest for a cursor that is none.
    """
    column, falls = SORTS.get(asked.sort, SORTS["name"])
    dataset_id = col(EntryRow.dataset_id)
    wanted = select(column, dataset_id).where(*_fits(session, asked))
    if asked.after:
        here = tuple_(column, dataset_id)
        there = tuple_(*_cursor(asked.after, asked.sort))
        wanted = wanted.where(here < there if falls else here > there)
    order = (column.desc(), dataset_id.desc()) if falls else (column, dataset_id)
    rows = session.exec(wanted.order_by(*order).limit(limit + 1)).all()
    more = f"{rows[limit - 1][1]},{rows[limit - 1][0]}" if len(rows) > limit else ""
    return [int(number) for _, number in rows[:limit]], more


def _cursor(text: str, sort: str) -> tuple[Any, int]:
    number, _, value = text.partition(",")
    kind = {"name": str, "epsilon": float}.get(sort if sort in SORTS else "name", int)
    try:
        return kind(value), int(number)
    except ValueError as error:
        raise BadRequest(
            f"after={text[:60]!r} is no cursor; take it from the page before"
        ) from error


def _fits(session: Session, asked: Asked) -> list[ColumnElement[bool]]:
    conditions: list[Any] = [] if asked.all else [col(EntryRow.on_sale).is_(True)]
    exact = {"schema_hash": asked.schema, "kind": asked.kind, "unit": asked.unit}
    conditions += [col(getattr(EntryRow, name)) == value for name, value in exact.items() if value]
    if asked.most_units is not None:
        conditions.append(col(EntryRow.price_rank) <= asked.most_units)
    if asked.persons is not None:
        conditions.append(col(EntryRow.persons) >= asked.persons)
    if asked.epsilon is not None:
        conditions.append(col(EntryRow.epsilon_left) >= asked.epsilon)
    if asked.nodes is not None:
        conditions.append(col(EntryRow.node).in_(asked.nodes))
    wanted = {"country": asked.country, "condition": asked.condition}
    marks = [_mark(name, value) for name, value in wanted.items() if value]
    return conditions + _with_words(session, words(asked.text)[:MOST_ASKED], marks)


def _mark(name: str, value: str) -> str:
    """What is kept among a dataset's words to find it by a field; no search for a word finds it."""
    return f"={name}={' '.join(value.casefold().split())}"[: 2 * LONGEST_WORD]


def _with_words(session: Session, asked: Sequence[str], marks: Sequence[str]) -> list[Any]:
    """Each word begins a word of the dataset's, and each mark is one of it. Where few datasets have
    them all, these are named; else the catalogue is walked in its order, in which enough of them
    come soon.
    """
    word_ = col(WordRow.word)
    starts: list[tuple[Any, ...]] = [
        *((word_ >= word, word_ < word + AFTER_ALL) for word in asked),
        *((word_ == mark,) for mark in marks),
    ]
    rare = [start for start in starts if _how_many(session, start) <= COMMON]
    if rare:
        have = [select(WordRow.dataset_id).where(*start) for start in rare]
        all_of = have[0].intersect(*have[1:]) if len(have) > 1 else have[0].distinct()
        few = session.execute(all_of.limit(FEW + 1)).scalars().all()
        if len(few) <= FEW:
            common = [start for start in starts if not any(start is one for one in rare)]
            return [col(EntryRow.dataset_id).in_(few), *map(_has, common)]
    return list(map(_has, starts))


def _how_many(session: Session, start: tuple[Any, ...]) -> int:
    """How many words begin so, up to one more than COMMON."""
    found = select(WordRow.dataset_id).where(*start).limit(COMMON + 1).subquery()
    return session.exec(select(func.count()).select_from(found)).one()


def _has(start: tuple[Any, ...]) -> Any:
    mine = select(WordRow.word).where(WordRow.dataset_id == EntryRow.dataset_id, *start)
    return mine.exists()


def totals(session: Session) -> dict[str, int]:
    """How many datasets are on sale, of how many hospitals, with how many persons."""
    on_sale = col(EntryRow.on_sale).is_(True)
    datasets, hospitals, persons = session.exec(
        select(
            func.count(),
            func.count(func.distinct(EntryRow.hospital)),
            func.coalesce(func.sum(EntryRow.persons), 0),
        ).where(on_sale)
    ).one()
    return {"datasets": datasets, "hospitals": hospitals, "persons": int(persons)}


def groups(session: Session, most: int) -> list[tuple[str, int, int]]:
    """The schemas that most datasets on sale have: (hash, datasets, persons)."""
    count, persons = func.count(), func.sum(EntryRow.persons)
    wanted = (
        select(EntryRow.schema_hash, count, persons)
        .where(col(EntryRow.on_sale).is_(True))
        .group_by(EntryRow.schema_hash)
        .order_by(count.desc(), col(EntryRow.schema_hash))
        .limit(most)
    )
    return [(schema, n, int(sum_)) for schema, n, sum_ in session.exec(wanted).all()]


def sharing(session: Session, schema_hash: str, most: int) -> list[int]:
    """The first datasets on sale that have this schema, which one order can be over."""
    wanted = select(EntryRow.dataset_id).where(
        EntryRow.schema_hash == schema_hash, col(EntryRow.on_sale).is_(True)
    )
    return list(session.exec(wanted.order_by(col(EntryRow.dataset_id)).limit(most)).all())


def shared(session: Session) -> dict[str, int]:
    """How many datasets on sale have each schema that several have."""
    count = func.count()
    wanted = select(EntryRow.schema_hash, count).where(col(EntryRow.on_sale).is_(True))
    several = wanted.group_by(EntryRow.schema_hash).having(count > 1)
    return dict(session.exec(several).all())
