"""The pictures that a table names: tried, read once by the schema's rules, and kept by their
content as shards. Knows nothing of patients, labels or jobs.

What was read is found again by names, sizes and times of the files and by the rules, so that a node
starts without reading 100,000 pictures; a file that was touched is read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatokens.terms import canonical_json
from fl_client.data.pictures import PictureRules, patient_id, read_picture
from fl_client.data.readers import Row, rows
from fl_client.data.schemas import PICTURE
from fl_client.data.shards import Shards, write_shards
from fl_client.data.sources import DICOM_ID, Source
from fl_client.data.survey import survey
from fl_client.errors import DatasetError, SourceAway

log = logging.getLogger("datahub.node")

FOUND = "album.json"
UNREADABLE = "a picture that can be read"  # what such a record lacks
SHOWN = 3


class Album:
    """The pictures of a source. `shards` holds each once, however often it is named; `at` says
    where.
    """

    def __init__(self, source: Source, rules: PictureRules, store: Path | None):
        """Read what is not kept yet, in `store` or for this process alone. Raises DatasetError."""
        self._source, self._column = source, source.column(PICTURE).column
        self._absent = frozenset(("", *source.missing))
        paths = _paths(source)
        if store is None:
            self._own = tempfile.TemporaryDirectory(prefix="pictures-")  # gone with the album
            store = Path(self._own.name)
        folder = store / _key(source, rules, paths)
        kept = _kept(folder, paths)
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process or a disk has left
            try:
                kept = _keep(folder, paths, rules, DICOM_ID in source.patients)
            except OSError as error:
                raise DatasetError(f"{folder}: cannot be written: {error}") from error
        self._found = kept
        broken = {path: said["why"] for path, said in self._found.items() if "why" in said}
        if broken and not source.unreadable:
            few = "; ".join(list(broken.values())[:SHOWN])
            raise DatasetError(
                f"{len(broken)} of {len(paths)} pictures cannot be read: {few}; mend them, or say "
                'source.unreadable = "leave out"'
            )
        for why in broken.values():
            log.warning("left out: %s", why)
        self.shards = Shards(folder)
        shown = dict.fromkeys(said["sha256"] for said in self._found.values() if "why" not in said)
        self._at = {sha: i for i, sha in enumerate(shown)}

    def rows(self) -> Iterator[tuple[str, Row]]:
        """As readers.rows, with the picture's SHA-256 in place of its name, so that a record is the
        same wherever its file lies; UNREADABLE where there is none.
        """
        for where, row in rows(self._source):
            cell = row.get(self._column, "")
            if self._column in row and cell not in self._absent:
                said = self._found.get(str(self._source.picture(cell)))
                if said is None:
                    raise DatasetError(f"{where}: {cell} is new; the table changed meanwhile")
                row = {**row, self._column: said.get("sha256", UNREADABLE)}
                if DICOM_ID in self._source.patients:
                    row = {**row, DICOM_ID: said.get("patient", "")}
            yield where, row

    def at(self, cell: str) -> int | None:
        """Where in `shards` the picture is that a row of `rows` names; None for none."""
        return self._at.get(cell)


def stamp(source: Source, rules: PictureRules) -> str:
    """What the pictures' files look like: other where one was touched. Raises SourceAway where none
    of them is there.
    """
    paths = _paths(source)
    if not any(path.exists() for path in paths):
        raise SourceAway(f"none of the {len(paths)} pictures of {source.where} is there")
    return _key(source, rules, paths)


def _paths(source: Source) -> list[Path]:
    absent = frozenset(("", *source.missing))
    column = source.column(PICTURE).column
    named = (row.get(column, "") for _, row in rows(source))
    seen = dict.fromkeys(cell for cell in named if cell not in absent)
    return list(dict.fromkeys(source.picture(cell) for cell in seen))


def _key(source: Source, rules: PictureRules, paths: list[Path]) -> str:
    def stamp(path: Path) -> list[Any]:
        try:
            found = path.stat()
        except OSError:
            return [str(path)]
        return [str(path), found.st_size, str(found.st_mtime_ns)]

    said = [rules.as_dict(), DICOM_ID in source.patients, [stamp(path) for path in paths]]
    return hashlib.sha256(canonical_json(said)).hexdigest()[:32]


Found = dict[str, dict[str, str]]  # path -> {sha256, patient?} or {why}


def _kept(folder: Path, paths: list[Path]) -> Found | None:
    """What was found of these pictures when they were read; None where that is not there whole."""
    try:
        found: Found = json.loads((folder / FOUND).read_text())
        Shards(folder).check()
        whole = set(found) == {str(path) for path in paths}
        right = whole and all("sha256" in said or "why" in said for said in found.values())
    except (OSError, ValueError, TypeError, AttributeError, DatasetError):
        return None
    return found if right else None


def _keep(folder: Path, paths: list[Path], rules: PictureRules, dicom: bool) -> Found:
    def told(done: int, of: int) -> None:
        if done == of or done % 5000 == 0:
            log.info("%d of %d pictures tried", done, of)

    good, broken = survey(paths, rules, told)
    if not good:
        few = "; ".join(list(broken.values())[:SHOWN])
        raise DatasetError(f"none of {len(paths)} pictures can be read: {few}")
    found: Found = {str(path): {"why": why} for path, why in broken.items()}

    def pictures() -> Iterator[Any]:
        seen: set[str] = set()
        for i in good:
            path = paths[i]
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = {"sha256": sha} | ({"patient": patient_id(path)} if dicom else {})
            if sha not in seen:
                seen.add(sha)
                yield read_picture(path, rules)

    write_shards(folder, pictures(), rules)
    descriptor = os.open(folder / f".{FOUND}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(found, file)
        file.flush()
        os.fsync(file.fileno())
    (folder / f".{FOUND}").rename(folder / FOUND)
    return found
