"""Builds the C library when the package is installed, by hatchling, and not at all where that does not work.

An installation without the library is complete: it uses torch alone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "infinimem/native"
# Without contraction, every compiler's code rounds as this one's.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")
TAG = "py3-none-linux_x86_64"
SECONDS = 120


class LibraryHook(BuildHookInterface):  # type: ignore[misc]
    """A wheel with the library where there is a compiler for it, else a pure one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into the source tree, from where wheels and editable installations take it."""
        folder = Path(self.root) / FOLDER
        library = build(folder)
        if library is not None:
            build_data["artifacts"].append(f"{FOLDER}/{library.name}")
            build_data["pure_python"] = False
            build_data["tag"] = TAG


def build(folder: Path) -> Path | None:
    """The library of the sources in `folder`, freshly compiled, or None; an old one never stays."""
    library: Path = runpy.run_path(str(folder / "sources.py"))["library_of"](folder)
    # Beside its place first: nobody loads half of it.
    fresh = library.with_suffix(f".{os.getpid()}")
    sources = map(str, sorted(folder.glob("*.c")))
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(fresh), *sources]
    try:
        for old in folder.glob("libinfinimem*"):
            old.unlink()
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return None
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        fresh.replace(library)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"infinimem is installed without its C library, which would read faster: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        return None
    return library
