"""What is trained on: samples, which are lists of segments, and how to build them from text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..prompts import Message, encode_chat
from ..tokens import split_blocks

if TYPE_CHECKING:
    from ..model import InfiniModel

ATTEMPTS = 20


@dataclass(frozen=True)
class Segment:
    """Tokens that are read together.

    mask: True where the model shall predict this token from those before it; never at the first. prompt: a prompt with
    its own special tokens, which reads the memory and is not written; always the last of a sample.
    """

    tokens: list[int]
    mask: list[bool]
    prompt: bool = False


@dataclass(frozen=True)
class Sample:
    """Segments that are read one after the other, from an empty memory. kind: what the log calls its loss."""

    kind: str
    segments: list[Segment]

    @property
    def tokens(self) -> int:
        """Tokens of all segments."""
        return sum(len(segment.tokens) for segment in self.segments)


class Bench:
    """What builds samples for one model: its tokens, its segments, its prompts.

    cuts: "sentences" ends document segments as reading does, "fixed" at equal lengths.
    """

    def __init__(self, model: InfiniModel, cuts: str = "sentences") -> None:
        self.model = model
        self.length = model.segment_length
        self._cuts = cuts

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, as reading a document makes them."""
        blocks, rest = split_blocks(text)
        return self.model.encoder.encode_blocks([*blocks, rest] if rest else blocks)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self.model.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def cut(self, tokens: Sequence[int]) -> list[list[int]]:
        """Document segments."""
        if self._cuts == "fixed":
            return [list(tokens[i : i + self.length]) for i in range(0, len(tokens), self.length)]
        return list(self.model.segmenter.split(tokens))

    def ask(
        self,
        kind: str,
        document: Sequence[Sequence[int]],
        messages: Sequence[Message],
        answer: str,
        more: Sequence[tuple[str, str]] = (),
    ) -> Sample:
        """Document segments without loss, then a chat prompt as `DocumentMemory.ask` makes it, and its answer.

        more: further questions and answers of the same conversation, while the model's context holds them; none where
        the template writes what was said before in another way than it was said.
        """
        chat = list(messages)
        prompt, reply = encode_chat(self.model, chat), self._reply(answer)
        tokens, mask = [*prompt, *reply], [False] * len(prompt) + [True] * len(reply)
        for question, further in more:
            chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
            prompt, reply, answer = encode_chat(self.model, chat), self._reply(further), further
            if prompt[: len(tokens)] != tokens or len(prompt) + len(reply) > self.model.context_length:
                break
            mask += [False] * (len(prompt) - len(tokens)) + [True] * len(reply)
            tokens = [*prompt, *reply]
        return self._asked(kind, document, tokens, mask)

    def _reply(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        # After a template comes the answer itself, after plain "Answer:" a space.
        said = answer if self.model.tokenizer.chat_template else f" {answer}"
        end = self.model.tokenizer.eos_token_id
        return [*self.model.encoder.encode(said), *([] if end is None else [int(end)])]

    def complete(self, kind: str, document: Sequence[Sequence[int]], text: str, answer: str) -> Sample:
        """Document segments without loss, then plain text to go on from, and how it goes on."""
        prompt = [*self.model.prefix, *self.model.encoder.encode(text)]
        reply = self.model.encoder.encode(f" {answer}")
        return self._asked(kind, document, [*prompt, *reply], [False] * len(prompt) + [True] * len(reply))

    def _asked(
        self, kind: str, document: Sequence[Sequence[int]], tokens: Sequence[int], mask: Sequence[bool]
    ) -> Sample:
        asked = Segment(list(tokens), list(mask), prompt=True)
        return Sample(kind, [*(Segment(list(part), [False] * len(part)) for part in document), asked])

    def hide(
        self, segments: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]], rng: random.Random
    ) -> list[list[int]] | None:
        """Pieces at random sentence ends of the segments, in their order, none of them torn or lost.

        Lengths stay as they are: what a piece pushes out at the end of its segment is dropped. None if there is no
        room.
        """
        room = [len(segment) for segment in segments]
        sizes = [len(piece) for piece in pieces]
        for attempt in range(ATTEMPTS):
            if attempt < ATTEMPTS - 1:
                places = sorted(rng.randrange(len(segments)) for _ in pieces)
            else:
                places = _packed(room, sizes)
            if len(places) < len(pieces):
                return None
            chosen = [[p for p, at in zip(pieces, places, strict=True) if at == i] for i in range(len(room))]
            if all(sum(map(len, own)) <= free for own, free in zip(chosen, room, strict=True)):
                return [self._insert(segment, own, rng) for segment, own in zip(segments, chosen, strict=True)]
        return None

    def _insert(self, segment: Sequence[int], pieces: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
        size = len(segment)
        ends = [0, *(e for e in self.model.segmenter.ends(segment) if e + sum(map(len, pieces)) <= size)]
        result, done = [], 0
        for piece, place in zip(pieces, sorted(rng.choice(ends) for _ in pieces), strict=True):
            result += [*segment[done:place], *piece]
            done = place
        return [*result, *segment[done:]][:size]


def _packed(room: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Places of pieces packed from the front; fewer than there are pieces if they do not fit."""
    places: list[int] = []
    at = used = 0
    for size in sizes:
        while at < len(room) and used + size > room[at]:
            at, used = at + 1, 0
        if at == len(room):
            return places
        places.append(at)
        used += size
    return places


Generator = Callable[[random.Random, int], Sample]
"""From a random source and a number of document segments to a sample, a pure function of both."""
