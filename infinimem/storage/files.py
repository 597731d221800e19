"""Writing files: atomically, one writer at a time, with errors that say what to do."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import FileInUse, TargetNotWritable


@contextlib.contextmanager
def _writing(what: str, verb: str = "written") -> Iterator[None]:
    """Turn errors of the operating system into TargetNotWritable."""
    try:
        yield
    except OSError as error:
        raise TargetNotWritable(f"{what} cannot be {verb} ({error.strerror or error}); choose another place") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that others see either the old content or the new, also after a crash. Raises TargetNotWritable.

    A link is followed: the file it leads to is replaced. An old file keeps its mode bits; a new file's bits follow the
    umask.
    """
    with _writing(f"'{path}'"):
        target = _regular_target(path)
        temporary = _temporary_beside(target)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            os.replace(temporary, target)
        finally:
            # There is none left where all went well.
            temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: float = 0) -> Iterator[None]:
    """Keep other writers of this file away; to read the file, no lock is needed.

    A writer that dies leaves no lock behind. A thread that holds the lock may take it again.

    wait: seconds to wait for another writer.

    Raises FileInUse, TargetNotWritable.
    """
    from filelock import FileLock, Timeout

    with _writing(f"'{path}'"):
        target = _regular_target(Path(path))
        # Raises where the directory is missing; filelock would create the directory.
        target.parent.stat()
        lock = FileLock(target.with_name(f".{target.name[:100]}.lock"), is_singleton=True)
        try:
            lock.acquire(timeout=wait)
        except Timeout as error:  # an OSError, which `_writing` would take for a fault of the file system
            raise FileInUse(
                f"'{path}' is being written by another process; wait for it, or name another file"
            ) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # Removed while the lock is held: a process that opened the lock file before finds it gone, and tries again.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def version_of(path: Path) -> tuple[int, ...] | None:
    """A value that changes whenever the file is written; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def check_writable(path: Path) -> None:
    """Raise TargetNotWritable now rather than after an hour of ingestion; leaves no file behind."""
    with _writing(f"'{path}'"):
        _temporary_beside(_regular_target(path)).unlink()


def make_directory(path: Path) -> None:
    """Make a directory and the directories above it, unless they are there. Raises TargetNotWritable."""
    with _writing(f"the directory '{path}'", "made"):
        path.mkdir(parents=True, exist_ok=True)


def _regular_target(path: Path) -> Path:
    """The file that a path leads to when links are followed. Raises TargetNotWritable where it is no regular file."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise TargetNotWritable(f"'{path}' is no regular file; give the name of a file")
    return target


def _temporary_beside(target: Path) -> Path:
    """A new, empty file in the same directory, with the mode bits that the umask gives."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def remove_strays(path: Path) -> None:
    """Remove the temporary files of killed writers of this file. No other process may be writing the file now."""
    target = Path(os.path.realpath(path))
    for stray in target.parent.glob(f".{glob.escape(target.name[:100])}.{'[0-9a-f]' * 16}.tmp"):
        stray.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the rename durable; where the system does not allow that, the file is in place all the same."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
