"""A batch of samples forward and backward, segment by segment, through the memory.

- the memory's states are functional, so gradients flow from a question back to the segments that it needs
- with `checkpointing`, only the states at the start of a segment are kept; backward computes its forward again
- with `bptt` = n, gradients end every n segments, counted from the end, and each stretch is backpropagated as soon as
  it is read; stretches without loss are read without gradients
- the language-model head is computed only at positions with loss
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..attention.rules.state import State
from .samples import Sample

if TYPE_CHECKING:
    from ..model.infini_model import InfiniModel


@dataclass(frozen=True)
class Block:
    """One segment of all rows, padded on the right.

    mask: (B, T) bool, False for padding; None without padding.
    rows, places: (N,) int64, the positions with loss.
    targets: (N,), the tokens at these positions.
    weights: (N,) float32, of the losses.
    prompt: whether the segment is a prompt.
    written: whether the segment is written into the memory.
    """

    tokens: Tensor  # (B, T)
    mask: Tensor | None
    rows: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor
    prompt: bool
    written: bool


States = dict[int, State]
Result = tuple[Tensor | None, States, Tensor | None]


def groups(samples: Sequence[Sample], rows: int) -> list[list[int]]:
    """Indexes of samples that can be computed together, at most `rows` a group.

    The samples of a group have equal numbers of segments of equal kinds, and similar lengths.
    """
    shapes: dict[tuple[bool, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        shapes.setdefault(tuple(segment.prompt for segment in sample.segments), []).append(index)
    found = []
    for indexes in shapes.values():
        indexes.sort(key=lambda index: (len(samples[index].segments[-1].tokens), index))
        found += [indexes[start : start + rows] for start in range(0, len(indexes), rows)]
    return found


def blocks(model: InfiniModel, samples: Sequence[Sample]) -> list[Block]:
    """The segments of samples of one group. A sample's weights add up to 1, however many positions have loss."""
    shares = [1 / max(1, sum(sum(segment.mask) for segment in sample.segments)) for sample in samples]
    pad = model.tokenizer.pad_token_id or 0
    device = model.device
    made = []
    for number, segments in enumerate(zip(*(sample.segments for sample in samples), strict=True)):
        width = max(len(segment.tokens) for segment in segments)
        tokens = torch.full((len(segments), width), pad)
        mask = torch.zeros(len(segments), width, dtype=torch.bool)
        for row, segment in enumerate(segments):
            tokens[row, : len(segment.tokens)] = torch.tensor(segment.tokens)
            mask[row, : len(segment.tokens)] = True
        at = [(row, place) for row, segment in enumerate(segments) for place, on in enumerate(segment.mask) if on]
        rows, places = (torch.tensor([pair[axis] for pair in at], dtype=torch.int64) for axis in (0, 1))
        made.append(
            Block(
                tokens.to(device),
                None if bool(mask.all()) else mask.to(device),
                rows.to(device),
                places.to(device),
                tokens[rows, places].to(device),
                torch.tensor([shares[row] for row, _ in at], device=device),
                prompt=segments[0].prompt,
                # Nothing reads the memory after the last segment.
                written=number + 1 < len(samples[0].segments),
            )
        )
    return made


def read_block(model: InfiniModel, block: Block, states: States, seen: Tensor | None) -> Result:
    """Read one segment of all rows.

    states, seen: the memory so far, as `InfiniCache.set_states` takes it.
    Returns the weighted loss of each row, (B,) float32 (None where no position has loss), and the memory afterwards.
    """
    cache = model.new_cache()
    cache.set_states(states, seen)
    if block.written:
        hidden = model.read_segment(block.tokens, cache, block.mask, hidden=True)
    else:
        # Padding stands on the right, where causal attention does not see it.
        head = torch.tensor([] if block.prompt else model.prefix, dtype=torch.int64, device=model.device)
        tokens = torch.cat((head.expand(block.tokens.shape[0], -1), block.tokens), dim=1)
        output = model.model.get_decoder()(input_ids=tokens, past_key_values=cache, use_cache=True)
        hidden = output.last_hidden_state[:, len(head) :]
    loss: Tensor | None = None
    if len(block.rows) and hidden is not None:
        logits = model.head(hidden[block.rows, block.places - 1]).float()  # (N, V)
        each = F.cross_entropy(logits, block.targets, reduction="none") * block.weights
        loss = each.new_zeros(block.tokens.shape[0]).index_add(0, block.rows, each)
    return loss, cache.states(), cache.seen


def backward(
    model: InfiniModel,
    samples: Sequence[Sample],
    *,
    bptt: int = 0,
    checkpointing: bool = True,
    scales: Sequence[float] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> list[float]:
    """Add the gradients of the samples' losses to the parameters; returns each sample's loss, unscaled.

    samples: of one group, as `groups` makes them.
    bptt: segments that gradients flow back through; 0 for all.
    checkpointing: compute each segment again in the backward pass.
    scales: factor of each sample's loss in the gradients; None for 1.
    stop: is called before every segment and may raise.
    """
    made = blocks(model, samples)
    losses = torch.zeros(len(samples), device=model.device)
    factors = torch.tensor(scales or [1.0] * len(samples), device=model.device)
    states: States = {}
    seen: Tensor | None = None
    stretch = bptt or len(made)
    starts = sorted({max(0, end - stretch) for end in range(len(made), 0, -stretch)})
    for start, end in zip(starts, [*starts[1:], len(made)], strict=True):
        part = made[start:end]
        trained = any(len(block.rows) for block in part)
        states = {index: {name: t.detach() for name, t in state.items()} for index, state in states.items()}
        total: Tensor | None = None
        with torch.set_grad_enabled(trained):
            for block in part:
                stop()
                if checkpointing and trained:
                    loss, states, seen = checkpoint(
                        read_block, model, block, states, seen, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    loss, states, seen = read_block(model, block, states, seen)
                if loss is not None:
                    losses += loss.detach()
                    scaled = (loss * factors).sum()
                    total = scaled if total is None else total + scaled
        if total is not None:
            total.backward()
    return [float(loss) for loss in losses]
