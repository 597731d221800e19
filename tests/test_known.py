"""Directories that the user has named: kept, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinimem import known


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(known.VARIABLE, str(tmp_path / "cache" / "known.jsonl"))
    monkeypatch.setattr(known, "_named", set())
    return tmp_path / "cache" / "known.jsonl"


def test_what_was_named_is_known_to_a_later_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not known.is_known(tmp_path)
    known.remember(tmp_path)
    monkeypatch.setattr(known, "_named", set())
    assert known.is_known(tmp_path) and not known.is_known(tmp_path / "below") and not known.is_known(tmp_path.parent)


def test_a_directory_is_known_by_every_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    known.remember(Path("link"))
    assert known.is_known(tmp_path / "model") and known.is_known(Path("model/../model"))


def test_naming_a_directory_again_writes_nothing(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        known.remember(tmp_path)
        monkeypatch.setattr(known, "_named", set())
    assert kept.read_text().split() == [json.dumps(str(tmp_path))]


def test_where_nothing_can_be_written_it_holds_for_the_process(tmp_path: Path, kept: Path) -> None:
    kept.parent.write_text("a file")
    known.remember(tmp_path)
    assert known.is_known(tmp_path)


def test_a_line_that_was_cut_off_does_not_swallow_the_next(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.parent.mkdir()
    kept.write_text('"/some/dir')
    known.remember(tmp_path)
    monkeypatch.setattr(known, "_named", set())
    assert known.is_known(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}\n[1]\nnull\n", b'"/cut', b"\n\n"])
def test_a_damaged_list_names_nothing(tmp_path: Path, kept: Path, content: bytes) -> None:
    kept.parent.mkdir()
    kept.write_bytes(content)
    assert not known.is_known(tmp_path)
