"""Incremental tokenization whose result does not depend on how the text arrives.

- text is cut into blocks at places that the text alone decides (a space between two letters, 256 characters or more
  after the last cut), and every block is tokenized separately; so any split of the input gives the same tokens, for
  every family of tokenizers
- the unfinished block is `pending`: it belongs to the state of a half-read document
- a document is data: strings in it that look like control tokens are encoded as ordinary text, even where the
  tokenizer does not mark the control token as special (`<think>`, `<tool_call>`, the roles of some families)
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

MIN_BLOCK = 256  # characters
MAX_BLOCK = 4096  # where a text has no spaces between letters, it is cut here
# The spelling of control tokens. Other added tokens are pieces of text: Gemma's runs of line ends, words of a user.
CONTROL = re.compile(r"\s*[<\[].*[>\]]\s*", re.DOTALL)


class TextEncoder:
    """Encodes untrusted text: no control tokens, no prefix; thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # A copy, as the switch below would change the caller's tokenizer.
            description = json.loads(backend.to_str())
            for token in description["added_tokens"]:
                token["special"] = token["special"] or CONTROL.fullmatch(token["content"]) is not None
            self._backend = type(backend).from_str(json.dumps(description))
            self._backend.no_padding()
            self._backend.no_truncation()
            self._backend.encode_special_tokens = True
        # A tokenizer that puts a space before every text would double the space that begins a block.
        self._keeps_space = self._encode(["a b"])[0] == self._encode(["a"])[0] + self._encode([" b"])[0]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is not None:
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [
            list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
            for text in texts
        ]

    @property
    def places(self) -> bool:
        """Whether the encoder can say where each token ends."""
        return self._backend is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self._encode([text])[0]

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token ids of words, each encoded as within a text."""
        return self._encode([f" {word}" for word in words] if self._keeps_space else words)

    def encode_blocks(self, blocks: Sequence[str]) -> list[int]:
        """Token ids of consecutive blocks of one text, as `split_blocks` cuts them."""
        if not self._keeps_space:
            blocks = [block[1:] if block[:1] == " " else block for block in blocks]
        return [token for ids in self._encode(blocks) for token in ids]

    def encode_placed(self, blocks: Sequence[str], start: int = 0) -> tuple[list[int], list[int]]:
        """The token ids of `encode_blocks`, and the character at which each token ends.

        start: character of the text at which the first block starts; it is added to the ends.

        The second list is empty where `places` is False.
        """
        if self._backend is None:
            return self.encode_blocks(blocks), []
        dropped = 0 if self._keeps_space else 1
        spared = [block[dropped:] if block[:1] == " " else block for block in blocks]
        tokens: list[int] = []
        ends: list[int] = []
        for block, kept, found in zip(
            blocks, spared, self._backend.encode_batch(spared, add_special_tokens=False), strict=True
        ):
            dropped = len(block) - len(kept)
            tokens += found.ids
            ends += [start + dropped + end for _, end in found.offsets]
            start += len(block)
        return tokens, ends


class TokenStream:
    """Turns text into tokens, in the order of the text.

    pending: text that was fed and is not yet tokenized.
    place: number of characters before `pending`.

    With each token comes the character at which it ends, where the encoder knows the ends.
    """

    def __init__(self, encoder: TextEncoder, pending: str = "", place: int = 0) -> None:
        self._encoder = encoder
        self.pending = pending
        self.place = place

    def feed(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens of all blocks that this text completes, and their ends."""
        blocks, self.pending = split_blocks(self.pending + text)
        found = self._encoder.encode_placed(blocks, self.place)
        self.place += sum(map(len, blocks))
        return found

    def rest(self) -> tuple[list[int], list[int]]:
        """Tokens of the pending text, which stays pending, and their ends."""
        return self._encoder.encode_placed([self.pending], self.place) if self.pending else ([], [])


def split_blocks(text: str) -> tuple[list[str], str]:
    """Complete blocks at the start of `text`, and the rest of the text."""
    blocks, start = [], 0
    while len(text) - start > MIN_BLOCK + 1:
        end = _cut(text, start)
        if end is None:
            break
        blocks.append(text[start:end])
        start = end
    return blocks, text[start:]


def _cut(text: str, start: int) -> int | None:
    limit = start + MAX_BLOCK
    at = start + MIN_BLOCK
    while (at := text.find(" ", at, limit)) != -1:
        if at + 1 == len(text):
            return None
        if text[at - 1].isalpha() and text[at + 1].isalpha():
            return at
        at += 1
    return limit if len(text) >= limit else None
