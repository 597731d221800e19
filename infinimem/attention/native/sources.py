"""Which library belongs to the C code beside this file; a library of other sources is never loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path


def library_of(folder: Path) -> Path:
    """The path of the library of the C code in `folder`, built or not; its name holds a hash of the sources."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        digest.update(path.read_bytes())
    return folder / f"libinfinimem-{digest.hexdigest()[:16]}.so"
