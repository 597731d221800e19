"""The process that parses a document: its limits, its end, and what is said about it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import nasty_pdfs
import pytest

from infinimem.errors import (
    InvalidSetting,
    ReaderCrashed,
    SourceNotFound,
    SourceTooLarge,
    SourceTooSlow,
    UnsupportedSource,
)
from infinimem.readers.process import parent
from infinimem.readers.process.limits import ReaderLimits
from infinimem.readers.source import open_source, read_pages

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paper.pdf"


@pytest.fixture
def slow(path: Path) -> Path:
    """A page that takes much longer than any test."""
    path.write_bytes(nasty_pdfs.with_slow_pages([None]))
    return path


def once(true: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    """Do something as soon as something is true."""

    def wait() -> None:
        until = time.monotonic() + 30
        while not true() and time.monotonic() < until:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_gone(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


@needs_signals
def test_a_process_that_is_killed_is_an_error_that_names_the_page(slow: Path, children: list[Any]) -> None:
    source = open_source(slow)
    killer = once(
        lambda: len(children) == 2 and children[1].at == 1,
        lambda: os.kill(children[1]._child.pid, signal.SIGKILL),
    )
    with pytest.raises(ReaderCrashed, match=r"page 1 of 'paper\.pdf' was given up: .* ended \(signal 9\); repair"):
        list(read_pages(source))
    killer.join()


@needs_signals
def test_a_process_that_is_killed_before_any_page_names_the_file(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "_START", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ReaderCrashed, match=r"^'paper\.pdf' was given up"):
        open_source(slow)


def test_a_process_that_cannot_be_started_is_an_error(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "_python_exe", str(slow.with_name("no-python")))
    with pytest.raises(ReaderCrashed, match="no process can be started"):
        open_source(slow)


def test_a_program_that_does_not_know_where_python_is_is_told_what_to_do(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ReaderCrashed, match="set_executable"):
        open_source(slow)


@needs_signals
def test_a_parser_does_not_outlive_whoever_asked(slow: Path) -> None:
    script = (
        "import sys, threading, time\n"
        "from infinimem.readers import ReaderLimits, open_source, read_pages\n"
        "from infinimem.readers.process import parent\n"
        "def tell(self, *arguments, begin=parent._Process.__init__):\n"
        "    begin(self, *arguments)\n"
        "    print(self._child.pid, flush=True)\n"
        "parent._Process.__init__ = tell\n"
        "list(read_pages(open_source(sys.argv[1]), limits=ReaderLimits(page_seconds=1)))\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", script, str(slow)], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    _, parsing = int(asking.stdout.readline()), int(asking.stdout.readline())
    asking.kill()
    asking.communicate()
    assert is_gone(parsing, 8)


@needs_signals
def test_ctrl_c_ends_both_processes_at_once(slow: Path) -> None:
    # A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that.
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from infinimem.readers import open_source, read_pages\n"
        "from infinimem.readers.process import parent\n"
        "def tell(self, number, begun=parent._Waits.begun):\n"
        "    print(number, flush=True)\n"
        "    begun(self, number)\n"
        "parent._Waits.begun = tell\n"
        "try:\n"
        "    list(read_pages(open_source(sys.argv[1])))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit('interrupted')\n"
    )
    command = [sys.executable, "-c", script, str(slow)]
    asking = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert asking.stdout is not None and asking.stdout.readline() == "1\n"
    began = time.monotonic()
    os.killpg(asking.pid, signal.SIGINT)
    _, said = asking.communicate()
    assert said == "interrupted\n" and time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.killpg(asking.pid, 0)


def test_pages_that_nobody_asks_for_any_more_are_not_parsed(path: Path, children: list[Any]) -> None:
    path.write_bytes(nasty_pdfs.texts(*[nasty_pdfs.WORDS] * 9))
    pages = read_pages(open_source(path))
    assert next(pages).number == 1
    assert children[1]._child.poll() is None or children[1]._child.poll() == 0
    pages.close()  # type: ignore[attr-defined]
    assert children[1]._child.returncode is not None


def test_a_reader_may_take_longer_than_a_parser(path: Path) -> None:
    # More text than a pipe holds, so that the parser has to wait.
    path.write_bytes(nasty_pdfs.texts(*[b"BT /F1 12 Tf (" + b"word " * 20_000 + b") Tj ET"] * 3))
    pages = read_pages(open_source(path), limits=ReaderLimits(page_seconds=1))
    next(pages)
    time.sleep(2.5)
    assert [page.number for page in pages] == [2, 3]


def test_what_a_parser_prints_is_no_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS))
    prints = (
        "import pypdf\ninit = pypdf.PdfReader.__init__\npypdf.PdfReader.__init__ = lambda *a: print('{}') or init(*a)"
    )
    monkeypatch.setattr(parent, "_START", parent._START.replace("main(task)", f"{prints}\nmain(task)"))
    assert len(list(read_pages(open_source(path)))) == 1


def test_a_parser_sees_no_modules_but_ours(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS))
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(list(read_pages(open_source(path)))) == 1


def test_a_name_of_any_characters_is_found(tmp_path: Path) -> None:
    path = tmp_path / "“é” \n {}.pdf"
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS))
    assert len(list(read_pages(open_source(path)))) == 1


def test_a_relative_path_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS))
    monkeypatch.chdir(path.parent)
    assert len(list(read_pages(open_source(path.name)))) == 1


@pytest.mark.parametrize("suffix", [".pdf", ".html", ".txt"])
def test_a_file_that_vanishes_after_it_was_opened_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"paper{suffix}"
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS) if suffix == ".pdf" else b"<p>Words.")
    source = open_source(path)
    path.unlink()
    with pytest.raises(SourceNotFound, match="no file at"):
        list(read_pages(source))


# Limits


def test_a_page_that_takes_too_long_is_given_up(slow: Path, children: list[Any]) -> None:
    source, began = open_source(slow), time.monotonic()
    with pytest.raises(SourceTooSlow, match=r"page 1 of 'paper\.pdf' was given up: .*\(0\.5 s for a page.*'page_sec"):
        list(read_pages(source, limits=ReaderLimits(page_seconds=0.5)))
    assert time.monotonic() - began < 5


def test_a_file_that_takes_too_long_is_given_up(slow: Path) -> None:
    source = open_source(slow)
    with pytest.raises(SourceTooSlow, match=r"0\.5 s and one more for each page"):
        list(read_pages(source, limits=ReaderLimits(seconds=0.5)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing limits memory")
def test_a_file_that_needs_too_much_memory_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "line.html"
    path.write_bytes(b"<p>" + b"word " * (8 << 20))
    with pytest.raises(SourceTooLarge, match=r"'line\.html' was given up: it needs more than 150 MB .* 'memory'"):
        list(read_pages(open_source(path), limits=ReaderLimits(memory=150_000_000)))


def test_a_file_of_too_many_pages_is_refused(path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(*[nasty_pdfs.WORDS] * 3))
    assert open_source(path, ReaderLimits(pages=3)).page_count == 3
    with pytest.raises(SourceTooLarge, match=r"has 3 pages, more than the 2 .* 'pages'"):
        open_source(path, ReaderLimits(pages=2))


def test_a_page_of_too_many_characters_is_an_error(path: Path) -> None:
    path.write_bytes(nasty_pdfs.texts(nasty_pdfs.WORDS, nasty_pdfs.WORDS * 10))
    with pytest.raises(SourceTooLarge, match=r"page 2 of 'paper\.pdf' has more than the 100 .* 'page_characters'"):
        list(read_pages(open_source(path), limits=ReaderLimits(page_characters=100)))


@pytest.mark.parametrize("suffix", [".pdf", ".md", ".txt"])
def test_a_file_of_too_many_characters_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"paper{suffix}"
    path.write_bytes(nasty_pdfs.texts(*[nasty_pdfs.WORDS] * 3) if suffix == ".pdf" else b"Some words here.\n\n" * 9)
    with pytest.raises(SourceTooLarge, match=r"more than the 100 characters .* 'characters'"):
        list(read_pages(open_source(path), limits=ReaderLimits(characters=100)))


@pytest.mark.parametrize("name", list(ReaderLimits().numbers()))
@pytest.mark.parametrize("value", [0, -1, True, "1", None, float("nan")])
def test_a_limit_is_a_positive_number(name: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match=f"the limit {name} is a positive"):
        ReaderLimits(**{name: value})


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_whether_to_recognize_text_is_true_or_false(value: Any) -> None:
    with pytest.raises(InvalidSetting, match="ocr is True or False"):
        ReaderLimits(ocr=value)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", Path(os.devnull)):
        with pytest.raises(UnsupportedSource, match="pipe or a device"):
            open_source(path)
