"""Data for measurements: documents as text or with questions, and JSON Lines (plain or gzip)."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import EmptySource, InvalidSetting, SourceNotFound, SourceUnreadable, UnsupportedSource

Q = TypeVar("Q")


@dataclass(frozen=True)
class Document(Generic[Q]):
    """A text with questions about it."""

    title: str
    text: str
    questions: tuple[Q, ...]


def is_json_lines(path: Path) -> bool:
    """Whether the name says JSON Lines."""
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, in order.

    Raises SourceNotFound, SourceUnreadable, UnsupportedSource for a line that is no JSON object, EmptySource.
    """
    number = found = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UnsupportedSource(f"line {number} of {path} is no JSON object; give one object a line")
                    found += 1
                    yield row
    except FileNotFoundError as error:
        raise SourceNotFound(f"there is no file {path}; check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnsupportedSource(
            f"{path} is no whole gzip file ({error}); give JSON Lines, one object a line"
        ) from error
    except OSError as error:
        raise SourceUnreadable(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UnsupportedSource(f"line {number} of {path} is no JSON ({error}); give one object a line") from error
    if not found:
        raise EmptySource(f"{path} is empty; give JSON Lines, one object a line")


def books(path: Path) -> list[tuple[str, str]]:
    """Documents as (title, text): the rows of JSON Lines with "text" (and "title"), or one file that a reader reads.

    Raises the SourceError that names the cause.
    """
    if not is_json_lines(path):
        from ..readers import open_source, read_pages

        return [(path.name, "\n\n".join(page.text for page in read_pages(open_source(path))))]
    found = [
        (str(row.get("title", row.get("id", number))), row.get("text"))
        for number, row in enumerate(read_json_lines(path), 1)
    ]
    for title, text in found:
        if not isinstance(text, str):
            raise UnsupportedSource(f'the row {title!r} of {path} has no "text"; give books, one object a line')
    return [(title, str(text)) for title, text in found]


def text_of(path: Path) -> str:
    """The text of a document, or of all books in JSON Lines."""
    return "\n\n".join(text for _, text in books(path))


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise InvalidSetting where no name is given, or one that is not known."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InvalidSetting(f"there is no {kind} {', '.join(unknown) or '(none)'}; choose from {', '.join(known)}")


def choose_questions(documents: Sequence[Document[Q]], limit: int | None, seed: int) -> list[Document[Q]]:
    """At most `limit` questions, as evenly over the documents as these have them; each document's drawn at random.

    Raises InvalidSetting for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidSetting(f"limit is {limit}; ask at least one question")
    generator = random.Random(seed)
    pools = [generator.sample(document.questions, len(document.questions)) for document in documents]
    order = generator.sample(range(len(documents)), len(documents))
    taken = [0] * len(documents)
    left = sum(map(len, pools)) if limit is None else min(limit, sum(map(len, pools)))
    while left:
        for index in order:
            if left and taken[index] < len(pools[index]):
                taken[index] += 1
                left -= 1
    return [
        Document(document.title, document.text, tuple(pool[:count]))
        for document, pool, count in zip(documents, pools, taken, strict=True)
        if count
    ]
