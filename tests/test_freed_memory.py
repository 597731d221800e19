"""Freed memory goes back to the system while a document is read, and is not looked for too often."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import MakeModel, random_tokens

from infinimem.cli.main import main
from infinimem.model import infini_model
from infinimem.model.infini_model import SEGMENTS_BETWEEN_TRIMS


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and needs glibc")
@pytest.mark.skipif(infini_model._malloc_trim() is None, reason="this C library keeps what it likes")
def test_pieces_between_what_stays_go_back_to_the_system() -> None:
    pieces = [b"x" * 100_000 for _ in range(2_000)]
    stays = pieces[::100]
    before = resident()
    del pieces
    infini_model.give_back_memory()
    assert before - resident() > 150_000_000 and len(stays) == 20


def test_reading_gives_memory_back_every_so_many_segments(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(infini_model, "give_back_memory", lambda: calls.append(1))
    model = make_model(segment_length=8)
    cache = model.new_cache()
    tokens = random_tokens(1, 8 * SEGMENTS_BETWEEN_TRIMS * 3)[0].tolist()
    half = len(tokens) // 2
    read = model.read_tokens(tokens[:half], cache) + model.read_tokens(tokens[half:], cache)
    assert len(calls) == read // SEGMENTS_BETWEEN_TRIMS >= 3


def test_commands_look_for_cycles_rarely() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        assert CliRunner().invoke(main, ["inspect", "no such file"]).exit_code
        assert gc.get_threshold() == (100_000, 10, 10)
    finally:
        gc.set_threshold(*before)


def test_commands_end_without_looking_for_cycles() -> None:
    code = """
class Loop:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("looked for")
{call}
Loop()
print("done")
"""

    def said(call: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code.format(call=call)], capture_output=True, text=True, check=True
        ).stdout.split("\n")[:-1]

    assert said("") == ["done", "looked for"]
    assert said("from infinimem.cli.main import collect_rarely; collect_rarely()") == ["done"]
