"""Term weights: how much each word of a passage says, computed in the forward pass that writes the memory.

- learned sparse retrieval, as in SPLADE (arXiv 2107.05720) or DeepImpact (arXiv 2104.12016)
- the weights of a passage are bytes, one a word, in the order of the passage's text; the words are in the text itself
- weights become known token by token, while passages are still being cut; `TermWeights` brings the two together
- the same model weighs the words of a question; search/ranking.py compares the two

This module needs neither torch nor a model.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DamagedMemoryFile
from .passages import Passage
from .words import spans

STEPS = 32  # a weight of 1 is the byte 32


def to_bytes(weights: Sequence[float]) -> bytes:
    """Weights from 0 to 7.97 as bytes, one each; other weights are clipped."""
    steps: np.ndarray = np.rint(np.asarray(weights) * STEPS).clip(0, 255).astype(np.uint8)
    return steps.tobytes()


def from_bytes(data: bytes) -> np.ndarray:
    """Weights (N,) float32."""
    return np.frombuffer(data, np.uint8).astype(np.float32) / STEPS


def last_tokens(ends: Sequence[int], start: int, text: str) -> list[int]:
    """For each word of a text, the index of the first token that ends where the word ends or later.

    ends: characters at which the tokens end, ascending.
    start: character at which the text starts, counted as `ends` are.

    The index is `len(ends)` where no token ends there or later.
    """
    return [bisect_left(ends, start + end) for _, end in spans(text)]


@dataclass
class TokenWeights:
    """The weights of the tokens of a text.

    ends: characters at which the tokens end, ascending.
    weights: one byte a token.
    """

    ends: list[int] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)

    def add(self, ends: Sequence[int], weights: bytes | bytearray) -> None:
        """Append these tokens."""
        self.ends += ends
        self.weights += weights

    def of_words(self, start: int, text: str) -> bytes:
        """The term weights of a passage that starts at character `start`: for each word, the weight of its last token.

        A word whose last token is not there has the weight 0.
        """
        places = last_tokens(self.ends, start, text)
        return bytes([self.weights[place] if place < len(self.ends) else 0 for place in places])


@dataclass
class TermWeights:
    """Term weights of a memory's passages, in the order of the text.

    head: the term head that gave the weights (`TermHead.sha256`).
    done: weights of the first passages, one byte a word.
    starts: characters at which the closed passages after the done passages start, counted over all sources.
    weighed: tokens that were read and that passages without weights may still need.
    """

    head: str
    done: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    weighed: TokenWeights = field(default_factory=TokenWeights)

    def copy(self) -> TermWeights:
        """A copy that can grow while this object stays as it is."""
        weighed = TokenWeights(list(self.weighed.ends), bytearray(self.weighed.weights))
        return TermWeights(self.head, list(self.done), list(self.starts), weighed)

    def settle(self, closed: Sequence[Passage]) -> None:
        """Give weights to every closed passage whose tokens were all read; closed: all closed passages."""
        while self.starts and self.weighed.ends:
            text, end = closed[len(self.done)].text, self.starts[0] + len(closed[len(self.done)].text)
            if end > self.weighed.ends[-1]:
                return
            self.done.append(self.weighed.of_words(self.starts.pop(0), text))
            passed = bisect_right(self.weighed.ends, end)
            del self.weighed.ends[:passed], self.weighed.weights[:passed]

    def of_all(self, passages: Sequence[Passage], begin: int, rest: TokenWeights) -> list[bytes]:
        """The weights of all passages, one byte a word.

        begin: character at which the last source starts, counted over all sources.
        rest: tokens that are in no whole segment yet; passages that are not done may need them.
        """
        left = TokenWeights(self.weighed.ends + rest.ends, self.weighed.weights + rest.weights)
        waiting = passages[len(self.done) :]
        starts = self.starts + [begin + passage.start for passage in waiting[len(self.starts) :]]
        return self.done + [left.of_words(start, p.text) for start, p in zip(starts, waiting, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of the finished weights only their number."""
        weighed = {"ends": self.weighed.ends, "weights": list(self.weighed.weights)}
        return {"head": self.head, "done": len(self.done), "starts": self.starts, **weighed}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], weights: Sequence[bytes], closed: int, passages: int) -> TermWeights:
        """The term weights of a memory file.

        plain: the values of `to_dict`.
        weights: one byte a word, for every passage.
        closed: number of closed passages.
        passages: number of all passages.

        Raises DamagedMemoryFile where the numbers do not fit each other.
        """
        done, weighed = plain["done"], TokenWeights(list(plain["ends"]), bytearray(plain["weights"]))
        sound = done + len(plain["starts"]) == closed and len(weights) == passages
        sound = sound and len(weighed.ends) == len(weighed.weights)
        if not sound or weighed.ends != sorted(weighed.ends) or plain["starts"] != sorted(plain["starts"]):
            raise DamagedMemoryFile(
                "the term weights in the memory file do not fit its passages; ingest the document again"
            )
        return cls(plain["head"], list(weights[:done]), list(plain["starts"]), weighed)


def split(data: np.ndarray, sizes: Sequence[int]) -> list[bytes]:
    """Split the term weights of a memory file by passage.

    data: the weights of all passages one after the other, (N,) uint8.
    sizes: number of words of each passage.

    Raises DamagedMemoryFile where the sizes do not add up to N. Whether each passage has as many words as its size says
    is checked when passages are ranked.
    """
    if data.ndim != 1 or sum(sizes) != data.size:
        raise DamagedMemoryFile(
            f"the memory file has term weights for {data.size} words, but says {sum(sizes)}; ingest the document again"
        )
    ends = np.cumsum(sizes)
    whole = data.tobytes()
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]
