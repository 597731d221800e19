"""Which library belongs to the C code beside this file: one of other sources is never loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path


def library_of(folder: Path) -> Path:
    """Where the library of the C code in `folder` is, or would be: its name tells what it was made of."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        digest.update(path.read_bytes())
    return folder / f"libinfinimem-{digest.hexdigest()[:16]}.so"
