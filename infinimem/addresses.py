"""Addresses of passages: how much each of their words says, found in the forward pass that writes the memory.

- an address is a byte a word, in the order of the passage's text; what the words are is in the text
- weights become known token by token, while passages are still being cut; `Addresses` brings the two together
- a question's words are weighed by the same model; a passage fits as far as it has the question's weighty words as
  weighty words of its own, rare ones of the document above all (`recall.AddressRanker`)

This module needs neither torch nor a model.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import DamagedMemoryFile
from .passages import Passage

WORD = re.compile(r"\w+")
STEPS = 32  # of a byte, in a weight of 1


def spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every word."""
    return [match.span() for match in WORD.finditer(text)]


def stems(text: str) -> list[str]:
    """The stem of every word, in the order of `spans`."""
    import Stemmer

    found: list[str] = Stemmer.Stemmer("english").stemWords([word.lower() for word in WORD.findall(text)])
    return found


def to_bytes(weights: Sequence[float]) -> bytes:
    """Weights of 0 to 7.97 as bytes."""
    steps: np.ndarray = np.rint(np.asarray(weights) * STEPS).clip(0, 255).astype(np.uint8)
    return steps.tobytes()


def from_bytes(data: bytes) -> np.ndarray:
    """Weights (N,) float32."""
    return np.frombuffer(data, np.uint8).astype(np.float32) / STEPS


def rarity(passages: int, having: Any) -> Any:
    """How much a word says that so many of the passages have (idf, as BM25 has it); numbers or arrays."""
    return np.log(1 + (passages - having + 0.5) / (having + 0.5))


def last_tokens(ends: Sequence[int], start: int, text: str) -> list[int]:
    """For each word of a text that starts at character `start`, the first token that ends at its end or after it;
    `len(ends)` if there is none."""
    return [bisect_left(ends, start + end) for _, end in spans(text)]


@dataclass
class Weighed:
    """Tokens of a text: where each ends (characters, ascending), and its weight, a byte each."""

    ends: list[int] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)

    def add(self, ends: Sequence[int], weights: bytes | bytearray) -> None:
        """Go on with these tokens."""
        self.ends += ends
        self.weights += weights

    def address(self, start: int, text: str) -> bytes:
        """The address of a passage that starts at character `start`: of each word, the weight of its last token.

        Words whose tokens are not there weigh nothing.
        """
        places = last_tokens(self.ends, start, text)
        return bytes([self.weights[place] if place < len(self.ends) else 0 for place in places])


@dataclass
class Addresses:
    """Addresses of a memory's passages, in the order of reading.

    head: what weighed them (`AddressHead.sha256`). done: of the first passages. starts: characters at which the closed
    passages after those start. weighed: tokens that were read and that passages not done may need.
    """

    head: str
    done: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    weighed: Weighed = field(default_factory=Weighed)

    def copy(self) -> Addresses:
        """Addresses that can grow while these stay."""
        weighed = Weighed(list(self.weighed.ends), bytearray(self.weighed.weights))
        return Addresses(self.head, list(self.done), list(self.starts), weighed)

    def settle(self, closed: Sequence[Passage]) -> None:
        """Give every closed passage whose tokens were all read its address."""
        while self.starts and self.weighed.ends:
            text, end = closed[len(self.done)].text, self.starts[0] + len(closed[len(self.done)].text)
            if end > self.weighed.ends[-1]:
                return
            self.done.append(self.weighed.address(self.starts.pop(0), text))
            passed = bisect_right(self.weighed.ends, end)
            del self.weighed.ends[:passed], self.weighed.weights[:passed]

    def of_all(self, passages: Sequence[Passage], begin: int, rest: Weighed) -> list[bytes]:
        """The addresses of all passages, those not done from `rest`, the tokens that no memory holds yet.

        begin: character at which the last source starts.
        """
        left = Weighed(self.weighed.ends + rest.ends, self.weighed.weights + rest.weights)
        waiting = passages[len(self.done) :]
        starts = self.starts + [begin + passage.start for passage in waiting[len(self.starts) :]]
        return self.done + [left.address(start, p.text) for start, p in zip(starts, waiting, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """What is not done, as plain values."""
        weighed = {"ends": self.weighed.ends, "weights": list(self.weighed.weights)}
        return {"head": self.head, "done": len(self.done), "starts": self.starts, **weighed}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], addresses: Sequence[bytes], closed: int, passages: int) -> Addresses:
        """What `to_dict` wrote of a memory with so many passages, so many of them closed. Raises DamagedMemoryFile."""
        done, weighed = plain["done"], Weighed(list(plain["ends"]), bytearray(plain["weights"]))
        sound = done + len(plain["starts"]) == closed and len(addresses) == passages
        sound = sound and len(weighed.ends) == len(weighed.weights)
        if not sound or weighed.ends != sorted(weighed.ends) or plain["starts"] != sorted(plain["starts"]):
            raise DamagedMemoryFile("the addresses in the memory file do not fit its passages; read the document again")
        return cls(plain["head"], list(addresses[:done]), list(plain["starts"]), weighed)


def split(data: np.ndarray, sizes: Sequence[int]) -> list[bytes]:
    """The addresses of passages of so many words each, as they stand in a file one after the other, (N,) uint8.

    Raises DamagedMemoryFile. That every passage has as many words is seen when they are ranked.
    """
    if data.ndim != 1 or sum(sizes) != data.size:
        raise DamagedMemoryFile(
            f"the memory file has addresses for {data.size} words, but says {sum(sizes)}; read the document again"
        )
    ends = np.cumsum(sizes)
    whole = data.tobytes()
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]
