"""Checkpoints of an ingestion: a memory file of what was read so far, from which the ingestion goes on.

- written atomically, once in SEGMENTS_BETWEEN segments; a process that dies at any moment leaves the last checkpoint
  whole
- an ingestion that goes on from a checkpoint, whichever it is, ends with the same bytes as an uninterrupted ingestion
- a checkpoint belongs to its sources (by name and SHA-256), its model and its settings; it is refused with any other
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
    """The checkpoint of an ingestion.

    path: the file.
    segments: number of whole segments after which the file is written again.
    """

    def __init__(self, path: Path, segments: int = SEGMENTS_BETWEEN) -> None:
        self.path = path
        self._segments = segments
        self._kept = 0

    def resume(self, empty: Ingestion, opened: Sequence[Source]) -> Ingestion:
        """The ingestion in the checkpoint, to go on with.

        empty: a new ingestion with the model and settings of this run.
        opened: the sources of this run.

        Raises CheckpointMismatch where the checkpoint was begun with other sources, another model or other settings,
        and the errors of `read_memory_file`.
        """
        remove_strays(self.path)
        file = read_memory_file(self.path)
        found = Record.from_file(file)
        different = differences(file.identity, empty.model.identity())
        if found.keep_passages != empty.record.keep_passages:
            different.append("either it or this ingestion keeps no passages")
        known, given = ([(s.name, s.kind, s.sha256) for s in sources] for sources in (found.sources, opened))
        if known != given[: len(known)]:
            names = ", ".join(f"'{source.name}'" for source in found.sources)
            different.append(f"it was begun with {names}, or with another content of these files")
        heads = [None if one.term_weights is None else one.term_weights.head for one in (empty.record, found)]
        if heads[0] != heads[1]:
            different.append("its term weights come from another term head")
        if different:
            raise CheckpointMismatch(
                f"the ingestion cannot go on from '{self.path}': {'; '.join(different)}; give the sources, model and "
                "settings that it was begun with, or ingest without resuming"
            )
        resumed = ingestion_of(empty.model, file, found)
        self._kept = resumed.seen
        return resumed

    def keep(self, ingestion: Ingestion) -> None:
        """Write the checkpoint, if enough segments were read since the last time. Raises TargetNotWritable."""
        if ingestion.seen - self._kept >= self._segments * ingestion.model.segment_length:
            ingestion.to_file(whole=False).write(self.path)
            self._kept = ingestion.seen
