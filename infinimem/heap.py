"""Freed memory: given back to the system, and not looked for too often.

glibc keeps what tensors leave behind in pieces between the states that stay, and the pieces become more with every
segment, while what is in use stays the same.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
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


def collect_rarely() -> None:
    """Let Python look for cycles once in 100,000 new objects, for the rest of the process, and not at its end.

    Importing torch and transformers makes a million that stay, and looking through them again and again takes a fifth
    of the time that a command needs to start; looking through them once more to end it takes another second.
    """
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
