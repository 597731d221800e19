"""One step of decoding: what the next token of several answers is.

- prompts of different lengths stand side by side, padded on the left, where nothing is attended to
- an answer may have several prompts, which then agree on its tokens; each is read for itself, and then they go on
  side by side, so that the weights are read once a token
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention.side_by_side import join

if TYPE_CHECKING:
    from .attention import InfiniCache
    from .model import InfiniModel


class Rows:
    """Prompts side by side, and all that was computed of them so far. cache: the memory in view; it stays as it is."""

    def __init__(self, model: InfiniModel, prompts: Sequence[Sequence[int]], cache: InfiniCache | None) -> None:
        self._model = model
        self._window = (model.new_cache() if cache is None else cache.clone()).inexact()
        rows, longest = len(prompts), max(map(len, prompts))
        if rows > 1 and self._window.seen is not None and self._window.seen.shape[0] == 1:
            self._window.batch_repeat_interleave(rows)
        pad = model.tokenizer.pad_token_id or 0
        self._tokens = torch.full((rows, longest), pad, device=model.device)  # (B, T) not computed yet
        self._mask = torch.zeros(rows, longest, dtype=torch.long, device=model.device)
        for row, prompt in enumerate(prompts):
            self._tokens[row, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
            self._mask[row, longest - len(prompt) :] = 1
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)

    def logits(self) -> Tensor:
        """Of the token after all that is there, (B, V)."""
        found: Tensor = self._model.model(
            input_ids=self._tokens,
            attention_mask=self._mask if self._mask.shape[0] > 1 else None,
            position_ids=self._positions,
            past_key_values=self._window,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return found

    def add(self, chosen: Tensor) -> None:
        """Go on with a token for each row, (B,); the logits of what was there must have been computed."""
        self._tokens, self._positions = chosen[:, None], self._positions[:, -1:] + 1
        self._mask = torch.cat((self._mask, self._mask.new_ones(self._mask.shape[0], 1)), dim=1)

    def take_in(self, other: Rows) -> None:
        """Go on with the rows of another one below one's own; the logits of what both have must have been computed."""
        self._window = join(self._window, other._window)
        self._tokens = torch.cat((self._tokens, other._tokens))
        self._positions = torch.cat((self._positions, other._positions))
        longest = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([F.pad(mask, (longest - mask.shape[1], 0)) for mask in (self._mask, other._mask)])


class Views:
    """Answers being decoded, each from one or several prompts; rows: one for each kind of prompt, of all answers."""

    def __init__(self, rows: Sequence[Rows]) -> None:
        self._rows = list(rows)
        self._count = len(rows)

    def logits(self) -> Tensor:
        """Of the next token of every answer, (B, V): what its prompts agree on."""
        found = [rows.logits() for rows in self._rows]
        return agreed(found if len(found) == self._count else found[0].chunk(self._count))

    def add(self, chosen: Tensor) -> None:
        """Go on with a token for each answer, (B,); the logits of what was there must have been computed."""
        for rows in self._rows:
            rows.add(chosen if len(self._rows) == self._count else chosen.repeat(self._count))
        while len(self._rows) > 1:
            self._rows[0].take_in(self._rows.pop(1))


def agreed(views: Sequence[Tensor]) -> Tensor:
    """Logits (B, V), or of several views of the same answers the mean of their log probabilities, float32."""
    if len(views) == 1:
        return views[0]
    return torch.stack([logits.float().log_softmax(dim=-1) for logits in views]).mean(dim=0)


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """The next token of every row, (B,), from logits (B, V): without a generator the most probable one, else one of
    those that have `top_p` together."""
    logits = logits.float()
    if generator is None:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    ordered, index = probabilities.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0  # the most probable token always stays
    picked = torch.multinomial(ordered, 1, generator=generator)
    return index.gather(-1, picked).squeeze(-1)
