"""Ensembles: several candidate prompts for one question, each with another part of the document, and one answer.

- each candidate prompt gives one answer, decoded greedily; the ensemble takes the answer that all candidate prompts
  together rate highest
- the rating is the sum over the prompts of weight x p(answer | prompt), as in RAG-Sequence with thorough decoding
  (arXiv 2005.11401, section 2.1), with two changes. log p is divided by a power of the answer's length (arXiv
  1609.08144, section 7), because otherwise the shortest answer wins. log p is also multiplied, so that prompts that are
  sure count for more
- an unfinished answer that can hardly win any more is given up
- a prompt that gives the answer NOT_SAID speaks only of its own part of the document, so the ensemble gives this
  answer only where all of its prompts do
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from ..errors import InvalidSetting
from .answer import is_answer
from .prompts import CandidatePrompt
from .rows import Rows

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel

# The most ensembles in one batch.
ENSEMBLES = 4
# A separate forward costs as much as this many tokens, so a prompt joins a batch only where it adds no more padding.
FORWARD = 48
# A candidate prompt rates an answer of n tokens, the end token included, with SURE x log p / n ** LENGTH.
LENGTH = 0.8
SURE = 2.0
# An unfinished answer is given up once its log probability is this far below that of a complete answer.
HOPELESS = 5.0


class Said(NamedTuple):
    """The tokens of an answer, without the token that ended it, and whether the model ended it."""

    tokens: list[int]
    ended: bool


@torch.no_grad()
def answers(
    model: InfiniModel,
    ensembles: Sequence[Sequence[CandidatePrompt]],
    *,
    max_new_tokens: int,
    no_repeat: int = 0,
    stop: Sequence[str] = (),
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Said]:
    """One answer from each ensemble, in their order.

    ensembles: candidate prompts, at least one for each ensemble.
    max_new_tokens: most tokens of an answer, the end token included.
    no_repeat: as in `rows.generate`.
    stop: texts with which an answer is complete.
    tick: is called between all steps, and may raise.
    """
    for start in range(0, len(ensembles), ENSEMBLES):
        some = ensembles[start : start + ENSEMBLES]
        # Sorted by length, so that little is padded.
        flat = sorted(
            ((number, prompt) for number, prompts in enumerate(some) for prompt in prompts),
            key=lambda pair: len(pair[1].tokens),
        )
        rows, logits = read(model, [prompt.tokens for _, prompt in flat], tick)
        weights = [prompt.weight for _, prompt in flat]
        owners = [number for number, _ in flat]
        limits = _Limits(max_new_tokens, no_repeat, stop, tick)
        said = _greedy(model, rows.copy(), logits, weights, owners, limits)
        for number in range(len(some)):
            own = [row for row, owner in enumerate(owners) if owner == number]
            candidates = list(dict.fromkeys(tuple(said[row]) for row in own if said[row]))
            tick()
            best = _best(model, rows, logits, {row: weights[row] for row in own}, candidates)
            ended = best[-1] in model.end_tokens
            yield Said(list(best[:-1] if ended else best), ended)


class _Limits(NamedTuple):
    max_new_tokens: int
    no_repeat: int
    stop: Sequence[str]
    tick: Callable[[], None]


def read(
    model: InfiniModel, prompts: Sequence[Sequence[int]], tick: Callable[[], None] = lambda: None
) -> tuple[Rows, Tensor]:
    """The prompts as rows, and the logits after each prompt, (B, V).

    prompts: token ids, the shortest prompt first. The tokens that all prompts begin with are computed once.
    tick: is called before each batch, and may raise.
    """
    # The common beginning leaves at least one token of each prompt, which gives the logits. Where attention has a
    # sliding window, padding between the beginning and the rest would count as distance.
    windowed = getattr(model.model.config.get_text_config(), "sliding_window", None) is not None
    alike = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    common = min(sum(takewhile(bool, alike)), len(prompts[0]) - 1)
    begun: Rows | None = None
    if common > 0 and len(prompts) > 1 and not windowed:
        begun = Rows(model, [prompts[0][:common]])
        begun.logits()
    else:
        common = 0
    rests = [prompt[common:] for prompt in prompts]
    groups: list[list[list[int]]] = [[]]
    for rest in rests:
        if groups[-1] and (len(rest) - len(groups[-1][-1])) * len(groups[-1]) > FORWARD:
            groups.append([])
        groups[-1].append(list(rest))
    rows: Rows | None = None
    logits: list[Tensor] = []
    for group in groups:
        tick()
        more = Rows(model, group, begun=begun)
        logits.append(more.logits())
        if rows is None:
            rows = more
        else:
            rows.take_in(more)
    if rows is None:
        raise InvalidSetting("there is nothing to read: an ensemble has no candidate prompts")
    return rows, torch.cat(logits)


def _greedy(
    model: InfiniModel,
    rows: Rows,
    logits: Tensor,
    weights: Sequence[float],
    owners: Sequence[int],
    limits: _Limits,
) -> list[list[int]]:
    """The most probable tokens of every row, with the token that ends them; no tokens for rows that were given up."""
    fresh = NoRepeatNGramLogitsProcessor(limits.no_repeat) if limits.no_repeat else None
    tokens = torch.empty(len(owners), 0, dtype=torch.long, device=logits.device)
    said: list[list[int]] = [[] for _ in owners]
    running, worth = set(range(len(owners))), list(weights)
    # For each ensemble, the worth of its best complete answer.
    complete = dict.fromkeys(owners, float("-inf"))
    for step in range(limits.max_new_tokens):
        limits.tick()
        if step:
            logits = rows.logits()
        found = logits.float().log_softmax(-1)
        if fresh is not None:
            found = fresh(tokens, found)
        best, chosen = found.max(dim=-1)
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        for row, (token, log) in enumerate(zip(chosen.tolist(), best.tolist(), strict=True)):
            if row not in running:
                continue
            said[row].append(token)
            worth[row] += log
            ended = token in model.end_tokens
            if ended or limits.stop:
                text = _text(model, said[row])
                if ended or any(end and end in text for end in limits.stop):
                    running.discard(row)
                    if _speaks(text):
                        complete[owners[row]] = max(complete[owners[row]], worth[row])
        for row in [row for row in running if worth[row] < complete[owners[row]] - HOPELESS]:
            running.discard(row)
            said[row] = []
        if not running:
            break
        rows.add(chosen)
    return said


def _text(model: InfiniModel, tokens: Sequence[int]) -> str:
    told = tokens[:-1] if tokens[-1] in model.end_tokens else tokens
    return str(model.tokenizer.decode(list(told), skip_special_tokens=True))


def _speaks(text: str) -> bool:
    return bool(text.strip()) and is_answer(text)


def _best(
    model: InfiniModel,
    rows: Rows,
    logits: Tensor,
    weights: Mapping[int, float],
    candidates: Sequence[tuple[int, ...]],
) -> tuple[int, ...]:
    """The candidate answer that the rows together rate highest.

    weights: row to its log weight.
    candidates: token ids of different answers. Those that answer the question come before those that give NOT_SAID,
        and answers without text come last.
    """
    texts = {candidate: _text(model, candidate) for candidate in candidates}
    some = [one for one, text in texts.items() if _speaks(text)]
    some = some or [one for one, text in texts.items() if text.strip()] or list(candidates)
    if len(some) == 1:
        return some[0]
    pairs = [(row, candidate) for candidate in some for row in weights]
    found = rows.log_probabilities(logits, [row for row, _ in pairs], [candidate for _, candidate in pairs])
    lengths = torch.tensor([float(len(candidate)) for candidate in some])[:, None]  # (candidates, 1)
    says = SURE * torch.tensor(found).view(len(some), len(weights)) / lengths**LENGTH  # (candidates, rows)
    return some[int((says + torch.tensor(list(weights.values()))).logsumexp(dim=1).argmax())]
