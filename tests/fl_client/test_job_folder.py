"""A job's folder holds a whole job or none."""

from pathlib import Path

import pytest

from datatokens.terms import JobTerms
from fl_client.errors import ProtocolError
from fl_client.node.job_folder import JobFolder, job_folders, write_whole
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
