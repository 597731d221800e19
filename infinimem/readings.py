"""Several readings of one question, each with another piece of the document in its prompt, and one answer.

- every reading says an answer of its own, greedily; of these, the one is taken that all of them together find most
  probable: p(answer) = sum over readings of weight x p(answer | reading), as in RAG-Sequence with thorough decoding
  (arXiv 2005.11401, section 2.1)
- that there is no answer is what a reading says of its own piece: it is the answer where all of them say so
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from .answer import is_answer
from .decode import Rows

if TYPE_CHECKING:
    from .model import InfiniModel

# Questions that are read side by side.
QUESTIONS = 4
# Prompts are padded to at most so many times their length.
PADDED = 1.5
# An answer that is so much less probable than one that is complete (log) is not written to its end.
HOPELESS = 5.0


class Reading(NamedTuple):
    """A prompt, and the log of its weight beside the others of its question, up to a constant."""

    tokens: list[int]
    weight: float


class Said(NamedTuple):
    """An answer's tokens, and whether the model ended it, by a token that is not among them."""

    tokens: list[int]
    ended: bool


@torch.no_grad()
def answers(
    model: InfiniModel,
    questions: Sequence[Sequence[Reading]],
    *,
    max_new_tokens: int,
    no_repeat: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Said]:
    """An answer to each question from its readings, one at least. no_repeat: as in `InfiniModel.generate`. tick: is
    called before every token, and may raise."""
    for start in range(0, len(questions), QUESTIONS):
        some = questions[start : start + QUESTIONS]
        # By length, so that little is padded.
        flat = sorted(
            ((number, reading) for number, readings in enumerate(some) for reading in readings),
            key=lambda pair: len(pair[1].tokens),
        )
        rows, logits = read(model, [reading.tokens for _, reading in flat])
        weights = torch.tensor([reading.weight for _, reading in flat], device=logits.device)
        owners = torch.tensor([number for number, _ in flat], device=logits.device)
        said = _greedy(model, rows.copy(), logits, weights, owners, max_new_tokens, no_repeat, tick)
        for number in range(len(some)):
            own = [row for row, (owner, _) in enumerate(flat) if owner == number]
            candidates = list(dict.fromkeys(tuple(said[row]) for row in own if said[row]))
            best = _most_probable(model, rows, logits, weights, own, candidates)
            ended = best[-1] in model.end_tokens
            yield Said(list(best[:-1] if ended else best), ended)


def read(model: InfiniModel, prompts: Sequence[Sequence[int]]) -> tuple[Rows, Tensor]:
    """Prompts, the shortest first, as rows, and the logits after each, (B, V). What all begin with is computed once."""
    # One token of each is left to be computed. What is padded after a common beginning would count as distance where
    # attention has a window.
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
    rows: Rows | None = None
    logits: list[Tensor] = []
    start = 0
    while start < len(rests):
        end = next((i for i in range(start, len(rests)) if len(rests[i]) > PADDED * len(rests[start])), len(rests))
        more = Rows(model, rests[start:end], begun=begun)
        logits.append(more.logits())
        if rows is None:
            rows = more
        else:
            rows.take_in(more)
        start = end
    if rows is None:
        raise ValueError("there are no prompts to read")
    return rows, torch.cat(logits)


def _greedy(
    model: InfiniModel,
    rows: Rows,
    logits: Tensor,
    weights: Tensor,
    owners: Tensor,
    max_new_tokens: int,
    no_repeat: int,
    tick: Callable[[], None],
) -> list[list[int]]:
    """The most probable tokens of every row, with the one that ends them; none of rows that were given up."""
    fresh = NoRepeatNGramLogitsProcessor(no_repeat) if no_repeat else None
    said = torch.empty(len(owners), 0, dtype=torch.long, device=logits.device)
    answers: list[list[int]] = [[] for _ in owners]
    running = torch.ones(len(owners), dtype=torch.bool, device=logits.device)
    worth = weights.clone()
    complete = torch.full_like(worth, float("-inf"))
    for step in range(max_new_tokens):
        tick()
        if step:
            logits = rows.logits()
        found = logits.float().log_softmax(-1)
        if fresh is not None:
            found = fresh(said, found)
        best, chosen = found.max(dim=-1)
        said = torch.cat((said, chosen[:, None]), dim=1)
        worth = worth + best
        for row in running.nonzero().flatten().tolist():
            answers[row].append(token := int(chosen[row]))
            if token in model.end_tokens:
                running[row] = False
                if is_answer(str(model.tokenizer.decode(answers[row], skip_special_tokens=True))):
                    complete[row] = worth[row]
        for row in running.nonzero().flatten().tolist():
            if worth[row] < complete[owners == owners[row]].max() - HOPELESS:
                running[row], answers[row] = False, []
        if not bool(running.any()):
            break
        rows.add(chosen)
    return answers


def _most_probable(
    model: InfiniModel,
    rows: Rows,
    logits: Tensor,
    weights: Tensor,
    own: Sequence[int],
    candidates: Sequence[tuple[int, ...]],
) -> tuple[int, ...]:
    """The candidate, of those that answer if any does, that the rows `own` together find most probable."""
    texts = model.tokenizer.batch_decode([list(c) for c in candidates], skip_special_tokens=True)
    some = [c for c, text in zip(candidates, texts, strict=True) if is_answer(text)] or list(candidates)
    if len(some) == 1:
        return some[0]
    pairs = [(row, candidate) for candidate in some for row in own]
    found = rows.log_probabilities(logits, [row for row, _ in pairs], [candidate for _, candidate in pairs])
    scores = torch.tensor(found).view(len(some), len(own)) + weights[list(own)].cpu()
    return some[int(scores.logsumexp(dim=1).argmax())]
