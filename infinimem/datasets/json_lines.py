"""JSON Lines, gzipped or not. Each row comes with the words that name its place in an error message."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import EmptySource, SourceNotFound, SourceUnreadable, UnsupportedSource

Row = dict[str, Any]


def is_json_lines(path: Path) -> bool:
    """Whether the name says JSON Lines."""
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a .jsonl or .jsonl.gz file, in order, each with its place ("line 3 of 'data.jsonl'").

    Raises SourceNotFound; SourceUnreadable; UnsupportedSource for a line that is no JSON object, and for an incomplete
    gzip file; EmptySource where there is no row.
    """
    number = found = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UnsupportedSource(f"line {number} of '{path}' is no JSON object; give one object a line")
                    found += 1
                    yield f"line {number} of '{path}'", row
    except FileNotFoundError as error:
        raise SourceNotFound(f"there is no data file '{path}'; check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnsupportedSource(
            f"'{path}' is no complete gzip file ({error}); restore a copy, or take .gz off the name of a plain file"
        ) from error
    except OSError as error:
        raise SourceUnreadable(f"'{path}' cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UnsupportedSource(f"line {number} of '{path}' is no JSON ({error}); give one object a line") from error
    if not found:
        raise EmptySource(f"'{path}' is empty; give JSON Lines, one object a line")


def need(place: str, row: Row, name: str, kind: type, of: type | None = None) -> Any:
    """The value of a field. Raises UnsupportedSource where it is missing, empty, or of another type.

    place: the words that name the row in the error message.
    kind: type of the value.
    of: type of the items, where the value is a list.
    """
    value = row.get(name)
    listed = value if isinstance(value, list) else []
    if not isinstance(value, kind) or value in ("", []) or (of and any(type(item) is not of for item in listed)):
        inside = f" of {of.__name__}" if of else ""
        raise UnsupportedSource(f"{place} needs a field '{name}' ({kind.__name__}{inside}) that is not empty")
    return value


def title_of(row: Row, number: int) -> str:
    """A name for a row, never blank, because passages are cited by it."""
    return next((name for key in ("title", "id") if (name := str(row.get(key) or "").strip())), str(number))
