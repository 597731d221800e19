"""What the rules and the attention exchange: the state of a memory, its layout, and parts of a softmax.

A place is one entry of a state: a slot or a carried token. Its count is the number of its tokens, 0 for an empty place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]
Layout = dict[str, tuple[torch.dtype, tuple[int | None, ...]]]


class Part(NamedTuple):
    """Keys and values of one part of a softmax, and the queries in the form that fits these keys.

    queries: (B, H, T, D), H a multiple of G.
    keys: (B, G, S, D).
    values: (B, G, S, Dv).
    biases: added to the logits; each has four dimensions and broadcasts to (B, G, T, S); -inf hides a key.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    biases: Sequence[Tensor] = ()
