"""Checkpoints of an ingestion: a memory file of what was read so far, from which the ingestion goes on.

- written every so many segments, atomically, so that a process that dies at any moment leaves the last one whole
- going on from a checkpoint gives the same bytes as an ingestion without a break, wherever it was written
- a checkpoint belongs to its sources (by name and SHA-256), its model and its settings, and is refused with others
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointMismatch
from ..model.identity import differences
from ..readers import Source
from ..storage.files import remove_strays
from ..storage.memory_file import read_memory_file
from .ingestion import Ingestion
from .opening import ingestion_of
from .record import Record

SEGMENTS_BETWEEN = 32


class Checkpoint:
    """The checkpoint at `path`. segments: whole segments between one writing and the next."""

    def __init__(self, path: Path, segments: int = SEGMENTS_BETWEEN) -> None:
        self.path = path
        self._segments = segments
        self._kept = 0

    def resume(self, empty: Ingestion, opened: Sequence[Source]) -> Ingestion:
        """The ingestion to go on from, in place of the empty one.

        Raises CheckpointMismatch where it was begun with other sources or settings, and the errors of
        `read_memory_file`.
        """
        remove_strays(self.path)
        file = read_memory_file(self.path)
        found = Record.from_file(file)
        different = differences(file.identity, empty.model.identity())
        if found.keep_passages != empty.record.keep_passages:
            different.append("one keeps passages, the other does not")
        known, given = ([(s.name, s.kind, s.sha256) for s in sources] for sources in (found.sources, opened))
        if known != given[: len(known)]:
            names = ", ".join(f"'{source.name}'" for source in found.sources)
            different.append(f"it was begun with {names}, or with another content of these files")
        heads = [None if one.term_weights is None else one.term_weights.head for one in (empty.record, found)]
        if heads[0] != heads[1]:
            different.append("its term weights come from another term head")
        if different:
            raise CheckpointMismatch(
                f"the ingestion cannot go on from '{self.path}': {'; '.join(different)}; give what it was begun with, "
                "or ingest without resuming"
            )
        resumed = ingestion_of(empty.model, file, found)
        self._kept = resumed.seen
        return resumed

    def keep(self, ingestion: Ingestion) -> None:
        """Write the checkpoint, if it is time to. Raises TargetNotWritable."""
        if ingestion.seen - self._kept >= self._segments * ingestion.model.segment_length:
            ingestion.to_file(whole=False).write(self.path)
            self._kept = ingestion.seen
