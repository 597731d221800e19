"""The place that an ingestion is written to: the memory file, its checkpoint FILE.partial, and the lock on both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidSetting, MemoryFileError, NotReplaced
from ..model.identity import differences
from ..readers import Found, Source, name_of
from ..storage.files import locked
from ..storage.memory_file import check_memory_target, read_memory_file

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel


def partial_of(output: Path) -> Path:
    """The path of the checkpoint of an ingestion into this memory file."""
    return output.parent / f"{output.name}.partial"  # `with_name` refuses paths such as "."


@contextlib.contextmanager
def writing(output: Path, names: Sequence[str], resume: bool) -> Iterator[Path]:
    """Lock a memory file and its checkpoint, and give the path of the checkpoint.

    The checkpoint is deleted if the block ends without an error.

    output: the memory file.
    names: names of the sources.
    resume: whether the ingestion goes on from the checkpoint.

    Raises FileInUse, TargetNotWritable, and NotReplaced where something else would be lost: a document, or, without
    `resume`, an interrupted ingestion of documents with other names.
    """
    with locked(output):
        check_memory_target(output)
        partial = partial_of(output)
        if not resume:
            _check_abandoned(partial, names)
        yield partial
        partial.unlink(missing_ok=True)


def _check_abandoned(partial: Path, names: Sequence[str]) -> None:
    try:
        begun = [str(source["name"]) for source in read_memory_file(partial).sources]
    except MemoryFileError:
        return
    if begun != list(names)[: len(begun)]:
        quoted = ", ".join(f"'{name}'" for name in begun)
        raise NotReplaced(
            f"'{partial}' keeps an interrupted ingestion of {quoted}; to go on with it, name these documents and "
            "resume=True (--resume); otherwise delete this file, or name another output"
        )


def targets_in(directory: Path, found: Sequence[Found | Source]) -> dict[str, Path]:
    """The memory file for each document, by the document's name. Raises InvalidSetting where two names are the same."""
    named: dict[str, Path] = {}
    paths = [one.path for one in found]
    for path in paths:
        # Some file systems do not tell capitals from small letters.
        key = name_of(path).casefold()
        if key in named:
            raise InvalidSetting(
                f"'{named[key]}' and '{path}' have the same name, and so would their memory files; read them into two "
                "directories"
            )
        named[key] = path
    return {name_of(path): directory / f"{name_of(path)}.safetensors" for path in paths}


def is_there(target: Path, source: Source, model: InfiniModel, passages: bool, skip: bool) -> bool:
    """Whether the memory file has the present content of this document, read by this model with these settings.

    The memory may have more documents that were appended later.

    passages: whether the memory must keep passages, or must keep none.
    skip: also accept a memory that leaves out parts of the document.
    """
    try:
        file = read_memory_file(target)
    except MemoryFileError:
        return False
    known = [entry for entry in file.sources if entry["sha256"] == source.sha256]
    return (
        bool(known)
        and (skip or not known[0]["skipped"])
        and (file.passages is not None) == passages
        and not differences(file.identity, model.identity())
    )
