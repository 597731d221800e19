"""JSON from strangers: standard JSON only, not nested too deeply, and only text that can be written as UTF-8 again."""

from __future__ import annotations

import json
import math
from typing import Any

# The most levels of arrays and objects inside one another; no file that infinimem writes has half as many.
DEPTH = 16


def parse(text: str, depth: int = DEPTH) -> Any:
    """The value of a JSON text.

    Raises ValueError where the text is no JSON, and for NaN and infinities (which Python would accept), numbers too
    large for a float, half characters (lone surrogates), and nesting deeper than `depth` levels.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            break
    else:
        raise ValueError(f"it is nested more than {depth} levels deep")
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_start(text: str, at: int) -> tuple[Any, int]:
    """The value whose JSON starts at character `at` of a text, and the character at which the JSON ends.

    The text may go on after the value. Raises ValueError as `parse` does, also where the end of the JSON is missing;
    nesting has no limit but Python's own.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if "\\u" in text[at:end]:
        json.dumps(value, ensure_ascii=False).encode()
    return value, end


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large for a float")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
