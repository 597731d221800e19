"""Decoding token by token: the next token of several answers.

- prompts of different lengths are rows of one batch, padded on the left; no token attends to the padding
- where prompts begin with the same tokens, these tokens can be computed once for all of them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import NoRepeatNGramLogitsProcessor

from ..attention.batch import join
from ..errors import InvalidSetting
from .decoding import check_limits

if TYPE_CHECKING:
    from ..attention.cache import InfiniCache
    from ..model.infini_model import InfiniModel

# The number of tokens whose logits are in memory at a time.
SCORED_TOKENS = 512


class Rows:
    """Prompts as rows of one batch, and all that was computed for them so far.

    prompts: token ids, at least one each.
    cache: the memory that all prompts see, which stays as it is; None for an empty memory.
    begun: one row with the tokens that all prompts begin with; its logits must have been computed, and `prompts` are
        given without these tokens. It takes the place of `cache`.
    """

    def __init__(
        self,
        model: InfiniModel,
        prompts: Sequence[Sequence[int]],
        cache: InfiniCache | None = None,
        begun: Rows | None = None,
    ) -> None:
        self._model = model
        before = cache if begun is None else begun._window
        self._window: InfiniCache = (model.new_cache() if before is None else before.clone()).inexact()
        rows, longest = len(prompts), max(map(len, prompts))
        if rows > 1 and (begun is not None or (self._window.seen is not None and self._window.seen.shape[0] == 1)):
            self._window.batch_repeat_interleave(rows)
        pad = model.tokenizer.pad_token_id or 0
        self._tokens = torch.full((rows, longest), pad, device=model.device)  # (B, T) not computed yet
        self._mask = torch.zeros(rows, longest, dtype=torch.long, device=model.device)
        for row, prompt in enumerate(prompts):
            self._tokens[row, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
            self._mask[row, longest - len(prompt) :] = 1
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)
        if begun is not None:
            self._mask = torch.cat((begun._mask.expand(rows, -1), self._mask), dim=1)
            self._positions += begun._mask.shape[1]

    def logits(self) -> Tensor:
        """The logits of the next token of each row, (B, V)."""
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
        """Append one token to each row, (B,); the logits of the tokens before must have been computed."""
        self._tokens, self._positions = chosen[:, None], self._positions[:, -1:] + 1
        self._mask = torch.cat((self._mask, self._mask.new_ones(self._mask.shape[0], 1)), dim=1)

    def copy(self) -> Rows:
        """A copy of these rows, which can be continued in another way."""
        other = copy(self)
        other._window = self._window.clone()
        return other

    def log_probabilities(
        self, logits: Tensor, rows: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """The log probability of each continuation; the rows stay as they are.

        logits: (B, V), the result of `logits` for these rows.
        rows: for each continuation, the index of the row that it continues.
        continuations: token ids, at least one each.
        """
        # Logits are large, so only SCORED_TOKENS tokens are computed at a time.
        some = max(1, SCORED_TOKENS // max(map(len, continuations)))
        found: list[float] = []
        for start in range(0, len(rows), some):
            found += self._log_probabilities(logits, rows[start : start + some], continuations[start : start + some])
        return found

    def _log_probabilities(
        self, logits: Tensor, rows: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        chosen, longest = torch.tensor(rows, device=logits.device), max(map(len, continuations))
        tokens = torch.zeros(len(rows), longest, dtype=torch.long, device=logits.device)
        for place, continuation in enumerate(continuations):
            tokens[place, : len(continuation)] = torch.tensor(continuation, device=logits.device)
        found = _log_softmax_at(logits[chosen], tokens[:, 0])[:, None]  # (N, 1)
        if longest > 1:
            window = self._window.clone()
            window.batch_select_indices(chosen)
            after: Tensor = self._model.model(
                input_ids=tokens[:, :-1],
                attention_mask=F.pad(self._mask[chosen], (0, longest - 1), value=1),
                position_ids=self._positions[chosen, -1:] + 1 + torch.arange(longest - 1, device=logits.device),
                past_key_values=window,
                use_cache=True,
            ).logits  # (N, L - 1, V)
            rest = [_log_softmax_at(row, told) for row, told in zip(after, tokens[:, 1:], strict=True)]
            found = torch.cat((found, torch.stack(rest)), dim=1)
        return [float(row[: len(told)].sum()) for row, told in zip(found, continuations, strict=True)]

    def take_in(self, other: Rows) -> None:
        """Add the rows of `other` below these rows; the logits of both must have been computed."""
        self._window = join(self._window, other._window)
        self._tokens = torch.cat((self._tokens[:, -1:], other._tokens[:, -1:]))
        self._positions = torch.cat((self._positions[:, -1:], other._positions[:, -1:]))
        longest = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([F.pad(mask, (longest - mask.shape[1], 0)) for mask in (self._mask, other._mask)])


def _log_softmax_at(logits: Tensor, tokens: Tensor) -> Tensor:
    """The log probabilities (N,) that the logits (N, V) give to the tokens (N,)."""
    logits = logits.float()
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1)


def generate(
    model: InfiniModel,
    prompts: Sequence[Sequence[int]],
    cache: InfiniCache | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop_at_eos: bool = True,
    no_repeat: int = 0,
) -> Iterator[list[int | None]]:
    """Continue several prompts, one token of each in a step.

    prompts: token ids, at least one each.
    cache: the memory that all prompts see; it is cloned, never changed. None for an empty memory.
    max_new_tokens: most tokens of an answer.
    temperature: 0 is greedy; above 0, nucleus sampling with `top_p`, repeatable with `seed`.
    stop_at_eos: whether an end token ends an answer.
    no_repeat: no run of this many tokens comes twice in one answer; 0 allows any. The prompt does not count, so copying
        from it stays free.
    Yields one token a prompt in each step, None for prompts that have ended.
    Raises InvalidSetting where a prompt has no tokens, or where nothing can be decoded with these limits.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise InvalidSetting("there is nothing to continue: a prompt has no tokens")
    check_limits(max_new_tokens, temperature, top_p)
    rows = Rows(model, prompts, cache)
    generator = None
    if temperature > 0:
        generator = torch.Generator(device=model.device)
        generator.seed() if seed is None else generator.manual_seed(seed)
    ends = model.end_tokens if stop_at_eos else frozenset()
    running = [True] * len(prompts)
    said = torch.empty(len(prompts), 0, dtype=torch.long, device=model.device)
    fresh = NoRepeatNGramLogitsProcessor(no_repeat) if no_repeat else None
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = rows.logits()
            if fresh is not None:
                logits = fresh(said, logits)
            chosen = choose(logits, temperature, top_p, generator)  # (B,)
            said = torch.cat((said, chosen[:, None]), dim=1)
        step = chosen.tolist()
        running = [going and token not in ends for going, token in zip(running, step, strict=True)]
        yield [token if going else None for token, going in zip(step, running, strict=True)]
        if not any(running):
            return
        rows.add(chosen)


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """The next token of every row, (B,), from logits (B, V).

    generator: None takes the most probable token; otherwise it draws from the most probable tokens whose probabilities
        add up to `top_p`.
    """
    logits = logits.float()
    if generator is None:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    ordered, index = probabilities.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0  # the most probable token always stays
    picked = torch.multinomial(ordered, 1, generator=generator)
    return index.gather(-1, picked).squeeze(-1)
