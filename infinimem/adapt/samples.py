"""Training samples, which are lists of segments, and how to build them from text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..answering.prompts import Message, encode_chat
from ..text.tokens import split_blocks

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

ATTEMPTS = 20


@dataclass(frozen=True)
class Segment:
    """Tokens that are read together.

    mask: True where the model shall predict this token from the tokens before it; never at the first token.
    prompt: whether this is a prompt. A prompt has its own special tokens, reads the memory, is not written into it, and
        is the last segment of its sample.
    """

    tokens: list[int]
    mask: list[bool]
    prompt: bool = False


@dataclass(frozen=True)
class Sample:
    """Segments that are read one after the other, from an empty memory. kind: the name of its loss in the log."""

    kind: str
    segments: list[Segment]

    @property
    def tokens(self) -> int:
        """Tokens of all segments."""
        return sum(len(segment.tokens) for segment in self.segments)


class Bench:
    """Builds samples for one model, with its tokens, segments and prompts.

    cuts: where document segments end: "sentences" as in ingestion, "fixed" at equal lengths.
    """

    def __init__(self, model: InfiniModel, cuts: str = "sentences") -> None:
        self.model = model
        self.length = model.segment_length
        self._cuts = cuts

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, as ingestion makes them."""
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

        more: further questions and answers of the same conversation. They are added until the model's context is full,
            or until the chat template writes the earlier part of the conversation differently than before.
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
        # After a chat template the answer follows directly, after the plain "Answer:" a space comes first.
        said = answer if self.model.tokenizer.chat_template else f" {answer}"
        end = self.model.tokenizer.eos_token_id
        return [*self.model.encoder.encode(said), *([] if end is None else [int(end)])]

    def complete(self, kind: str, document: Sequence[Sequence[int]], text: str, answer: str) -> Sample:
        """Document segments without loss, then a plain text without loss, and the answer that continues it."""
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
        """Insert all pieces, whole and in their order, at random sentence ends of the segments.

        The segments keep their lengths: tokens that a piece pushes over the end of its segment are dropped. Returns
        None if there is no room for the pieces.
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
    """The index of the segment of each piece, packed from the front; fewer indexes than pieces if they do not fit."""
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
"""Makes a sample from a random source and a number of document segments; a pure function of both."""
