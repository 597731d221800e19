"""What ends an ingest from outside: a full disk, a directory that cannot be written, Ctrl-C, a source that vanishes.

Each in a process of its own, as the system does it: one clear line, exit status 1, and the checkpoint stays.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TEXT

from infinimem.cli.main import main
from infinimem.ingest.checkpoint import Checkpoint
from infinimem.storage.memory_file import read_memory_file

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")
# Runs the command line; after the first checkpoint, `then` happens.
# A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that.
INGEST = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys
from infinimem.ingest import checkpoint
from infinimem.cli.main import main
keep, kept = checkpoint.Checkpoint.keep, []
def keep_then(self, *arguments):
    keep(self, *arguments)
    if self.path.exists() and not kept:
        kept.append(True)
        {then}
checkpoint.Checkpoint.keep = keep_then
main()
"""
DISK_IS_FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))"
NO_SPACE = "(self.path.parent / 'filler').open('wb', buffering=0).write(bytes(1 << 24))"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    words, path = TEXT.split(), tmp_path / "long.txt"
    path.write_text("\n\n".join(" ".join(random.Random(n).choices(words, k=80)) + "." for n in range(60)))
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "memory"


@pytest.fixture
def arguments(source: Path, output: Path, tiny_directory: Path) -> list[str]:
    return ["ingest", str(source), "-o", str(output), "-m", str(tiny_directory), "--segment-length", "32"]


def run(arguments: list[str], then: str = "pass", before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(before or []), sys.executable, "-c", INGEST.format(then=then), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def resumes_to_the_same_bytes(arguments: list[str], output: Path) -> bool:
    """Whether going on ends with the file of an ingest without a break, and nothing else."""
    assert CliRunner().invoke(main, [*arguments, "--resume"]).exit_code == 0
    resumed = output.read_bytes()
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return resumed == output.read_bytes()


def tells_how_to_go_on(said: str, output: Path) -> bool:
    return said.count("\n") == 2 and f"What was read so far is in {output}.partial; go on with --resume." in said


@needs_posix
def test_a_disk_that_is_full_ends_an_ingest_which_can_go_on_later(arguments: list[str], output: Path) -> None:
    ended = run(arguments, DISK_IS_FULL)
    assert ended.returncode == 1 and tells_how_to_go_on(ended.stderr, output)
    assert f"Error: '{output}.partial' cannot be written (File too large); choose another place" in ended.stderr
    assert [path.name for path in output.parent.iterdir()] == ["memory.partial"]
    assert read_memory_file(output.with_name("memory.partial")).reading["tokens"] > 0
    assert resumes_to_the_same_bytes(arguments, output)


def alone(directory: Path, options: str) -> list[str]:
    """The beginning of a command for which a small file system of its own is mounted over a directory."""
    mounting = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounting, str(directory)]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    return command


@pytest.mark.slow
def test_no_space_on_the_device_is_one_line(arguments: list[str], output: Path) -> None:
    ended = run(arguments, NO_SPACE, alone(output.parent, "size=2m"))
    assert ended.returncode == 1 and tells_how_to_go_on(ended.stderr, output)
    assert "(No space left on device); choose another place" in ended.stderr


def test_a_file_system_that_cannot_be_written_is_one_line_before_anything_is_read(
    arguments: list[str], output: Path
) -> None:
    ended = run(arguments, before=alone(output.parent, "ro"))
    assert ended.returncode == 1
    assert ended.stderr == f"Error: '{output}' cannot be written (Read-only file system); choose another place\n"


@needs_posix
def test_a_directory_that_cannot_be_written_is_one_line_before_anything_is_read(
    arguments: list[str], output: Path
) -> None:
    output.parent.chmod(0o555)
    if os.access(output.parent, os.W_OK):
        pytest.skip("root writes everywhere")
    ended = run(arguments)
    output.parent.chmod(0o755)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and "cannot be written" in ended.stderr


@needs_posix
def test_ctrl_c_ends_an_ingest_which_can_go_on_later(arguments: list[str], output: Path) -> None:
    command = [sys.executable, "-c", INGEST.format(then="import time; time.sleep(60)"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not output.with_name("memory.partial").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "go on with --resume" in said and "Aborted!" in said
    assert "Traceback" not in said
    assert [path.name for path in output.parent.iterdir()] == ["memory.partial"]
    assert resumes_to_the_same_bytes(arguments, output)


def after_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Do something in an ingest of this process."""
    keep, kept = Checkpoint.keep, []

    def keep_then(self: Checkpoint, *arguments: Any) -> None:
        keep(self, *arguments)
        if self.path.exists() and not kept:
            kept.append(True)
            do()

    monkeypatch.setattr(Checkpoint, "keep", keep_then)


def interrupted(arguments: list[str], output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of an ingest that Ctrl-C ended."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    after_the_first_checkpoint(monkeypatch, interrupt)
    assert CliRunner().invoke(main, arguments).exit_code == 1
    return output.with_name("memory.partial")


def test_a_source_that_vanished_is_an_error_and_the_checkpoint_stays(
    arguments: list[str], output: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(arguments, output, monkeypatch)
    kept = partial.read_bytes()
    source.unlink()
    ended = CliRunner().invoke(main, [*arguments, "--resume"])
    assert ended.exit_code == 1
    assert ended.stderr == f"Error: no file at '{source}'; check the spelling and the directory\n"
    assert partial.read_bytes() == kept


def test_an_interrupted_reading_of_other_documents_is_not_replaced(
    arguments: list[str], output: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = interrupted(arguments, output, monkeypatch)
    kept = partial.read_bytes()
    other = source.with_name("other.txt")
    other.write_text("Something else.")
    changed = [str(other) if one == str(source) else one for one in arguments]
    ended = CliRunner().invoke(main, changed)
    assert ended.exit_code == 1 and f"keeps an interrupted ingestion of '{source.name}'" in ended.stderr
    assert ended.stderr.count("\n") == 1
    ended = CliRunner().invoke(main, [*changed, "--resume"])
    assert ended.exit_code == 1 and "ingestion cannot go on" in ended.stderr and ended.stderr.count("\n") == 1
    assert partial.read_bytes() == kept and not output.exists()


@needs_posix
def test_a_source_that_vanishes_before_its_turn_is_an_error_and_the_checkpoint_stays(
    arguments: list[str], output: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = source.with_suffix(".html")
    second.write_text("<p>Some more words.")
    after_the_first_checkpoint(monkeypatch, second.unlink)
    ended = CliRunner().invoke(main, [*arguments[:2], str(second), *arguments[2:]])
    assert ended.exit_code == 1 and f"{output}.partial; go on with --resume" in ended.stderr
    assert f"Error: no file at '{second}'; check the spelling and the directory" in ended.stderr
    assert read_memory_file(output.with_name("memory.partial")).reading["tokens"] > 0
