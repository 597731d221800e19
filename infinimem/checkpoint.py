"""Checkpoints of reading: a memory file of what was read so far, from which reading goes on.

- written every so many segments, atomically, so that a process that dies at any moment leaves the last one whole
- reading on from one gives the same bytes as reading without a break, wherever it was written
- a checkpoint belongs to its sources (by name and SHA-256), its model and its settings, and is refused with others
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointMismatch
from .memory_file import differences, read_memory_file, remove_strays
from .readers import Source
from .reading import Reading, Record, to_file

SEGMENTS_BETWEEN = 32


class Checkpoint:
    """The checkpoint at `path`. segments: whole segments between one writing and the next."""

    def __init__(self, path: Path, segments: int = SEGMENTS_BETWEEN) -> None:
        self.path = path
        self._segments = segments
        self._kept = 0

    def resume(self, reading: Reading, record: Record, opened: Sequence[Source]) -> tuple[Reading, Record]:
        """The reading and the record to go on from, in place of those given, which are empty.

        Raises CheckpointMismatch where it was begun with other sources or settings, and the errors of
        `read_memory_file`.
        """
        remove_strays(self.path)
        file = read_memory_file(self.path)
        found = Record.from_file(file)
        different = differences(file.identity, reading.model.identity())
        if found.keep_passages != record.keep_passages:
            different.append("one keeps passages, the other does not")
        known, given = ([(s.name, s.kind, s.sha256) for s in sources] for sources in (found.sources, opened))
        if known != given[: len(known)]:
            names = ", ".join(f"'{source.name}'" for source in found.sources)
            different.append(f"it was begun with {names}, or with another content of these files")
        heads = [None if one.addresses is None else one.addresses.head for one in (record, found)]
        if heads[0] != heads[1]:
            different.append("the words of its passages were weighed by another head for addresses")
        if different:
            raise CheckpointMismatch(
                f"reading cannot go on from '{self.path}': {'; '.join(different)}; give what it was begun with, or "
                "read without resuming"
            )
        resumed = Reading.from_file(reading.model, file, found)
        self._kept = resumed.seen
        return resumed, found

    def keep(self, reading: Reading, record: Record) -> None:
        """Write the checkpoint, if it is time to. Raises TargetNotWritable."""
        if reading.seen - self._kept >= self._segments * reading.model.segment_length:
            to_file(reading, record, whole=False).write(self.path)
            self._kept = reading.seen
