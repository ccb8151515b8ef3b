"""A job's folder holds a whole job or none."""

from pathlib import Path

import pytest

from datatokens.terms import JobTerms
from fl_client.errors import JobDamaged, ProtocolError
from fl_client.node.job_folder import (
    DECISIONS,
    RELEASES,
    Decision,
    JobFolder,
    job_folders,
    of_each,
    write_whole,
)
from fl_client.protocol import Refused, Signed

ANSWER = Signed(b"\x01\x02")


@pytest.mark.parametrize("answer", [ANSWER, Refused("no budget", b"\x03")])
def test_keep__then_read__gives_back_what_was_kept(
    tmp_path: Path, job_terms: JobTerms, answer: Signed | Refused
) -> None:
    folder = JobFolder(tmp_path, job_terms.job_id.hex())
    assert folder.answer is None and folder.terms is None and job_folders(tmp_path) == []
    folder.keep(job_terms.to_json(), b"graph", b"weights", answer)
    assert (folder.answer, folder.terms) == (answer, job_terms)
    assert folder.model_files == (b"graph", b"weights")
    assert [found.path for found in job_folders(tmp_path)] == [folder.path]


def test_keep__cut_off_before_the_answer__is_no_answer(
    tmp_path: Path, job_terms: JobTerms, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path, job_terms.job_id.hex())

    def cut(self: Path, target: Path) -> None:
        if target.name == "answer.json":
            raise KeyboardInterrupt
        replace(self, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        folder.keep(job_terms.to_json(), b"graph", b"weights", ANSWER)
    assert folder.answer is None


def test_write_whole__over_an_older_file__replaces_it_and_leaves_nothing_beside(
    tmp_path: Path,
) -> None:
    for content in (b"one", b"two"):
        write_whole(tmp_path / "x" / "file", content)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["file"]
    assert (tmp_path / "x" / "file").read_bytes() == b"two"


def test_keep_attested__another_result__refused(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, "ab" * 32)
    folder.keep_attested("one")
    folder.keep_attested("one")
    with pytest.raises(ProtocolError, match="already signed another result"):
        folder.keep_attested("two")


@pytest.mark.parametrize("bad", ["", "../" * 20, "ab" * 31 + "zz", "AB" * 32])
def test_job_folder__id_that_is_none__refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ProtocolError, match="64 hexadecimal digits"):
        JobFolder(tmp_path, bad)


READERS = {  # a file of a job -> what reads it
    "terms.json": lambda one: one.terms,
    "answer.json": lambda one: one.answer,
    "request.json": lambda one: one.request,
    "held.json": lambda one: one.held,
    "decisions.json": lambda one: one.decisions(DECISIONS),
    "releases.json": lambda one: one.decisions(RELEASES),
}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"{}", b"[1]", b"null", b"[" * 9000]
)
@pytest.mark.parametrize("name", READERS)
def test_read__a_file_that_is_damaged__is_said_and_costs_its_own_job(
    tmp_path: Path, name: str, content: bytes
) -> None:
    bad, good = JobFolder(tmp_path, "ab" * 32), JobFolder(tmp_path, "cd" * 32)
    good.keep_attested("one")
    write_whole(bad.path / name, content)
    with pytest.raises(JobDamaged, match=f"job abababababab: {name} in .* is damaged"):
        READERS[name](bad)
    found, damaged = of_each(tmp_path, lambda one: (READERS[name](one), one.path.name))
    assert [job for _, job in found] == ["cd" * 32] and list(damaged) == ["ab" * 32]


def test_read__a_file_of_another_user__is_damage_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path, "ab" * 32)
    folder.decide(Decision("a", True, "", 1.0))

    def refused(self: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(JobDamaged, match="PermissionError"):
        folder.decisions()


def test_write_whole__disk_is_full__leaves_the_old_file_and_no_half_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fl_client.node.job_folder.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_write_whole__by_root__belongs_to_whoever_the_folder_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr("fl_client.node.job_folder.os.geteuid", lambda: 0)
    monkeypatch.setattr(
        "fl_client.node.job_folder.os.fchown", lambda _, user, group: given.append((user, group))
    )
    write_whole(tmp_path / "file", b"")
    there = tmp_path.stat()
    assert given == [(there.st_uid, there.st_gid)]
