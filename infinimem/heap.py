"""Freed memory goes back to the system.

glibc keeps what tensors leave behind in pieces between the states that stay, and the pieces become more with every
segment, while what is in use stays the same.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _malloc_trim() -> Any:
    """glibc's function; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Give freed memory back to the system, where the C library can; about as costly as touching it again."""
    if (trim := _malloc_trim()) is not None:
        trim(0)
