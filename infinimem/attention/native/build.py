"""Builds the C library when hatchling installs the package, and leaves it out where it cannot be built.

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

FOLDER = "infinimem/attention/native"
# Without contraction (into fused multiply-adds), the code of all compilers rounds alike.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")
MACHINES = ("x86_64", "aarch64")
SECONDS = 120


class LibraryHook(BuildHookInterface):  # type: ignore[misc]
    """Makes a wheel with the library where a compiler can build it, and a pure wheel elsewhere."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into the source tree, from where wheels and editable installations take it."""
        folder = Path(self.root) / FOLDER
        library = build(folder)
        if library is not None:
            build_data["artifacts"].append(f"{FOLDER}/{library.name}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"


def build(folder: Path) -> Path | None:
    """Compile the sources in `folder`; returns the library, or None where that fails. Old libraries are deleted."""
    library: Path = runpy.run_path(str(folder / "sources.py"))["library_of"](folder)
    # It is compiled under another name first, so that no process loads half a library.
    fresh = library.with_suffix(f".{os.getpid()}")
    sources = map(str, sorted(folder.glob("*.c")))
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(fresh), *sources]
    try:
        for old in folder.glob("libinfinimem*"):
            old.unlink()
        if sys.platform != "linux" or platform.machine() not in MACHINES:
            return None
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        fresh.replace(library)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"infinimem is installed without its C library, which makes ingestion faster: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        return None
    return library
