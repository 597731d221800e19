"""Undoing and composing rotary position embeddings (RoPE).

- transformers rotates queries and keys before the attention function sees them; a rotation is undone exactly by the
  same rotation with its sine negated, so position-free vectors are recovered without touching any model code
- only the layout of the supported families is covered: the two halves of a head form the pairs; where the tables are
  narrower than the head (partial rotation), the rest of the head stays as it is
- tables may be scaled (YaRN, LongRoPE) or rounded to bfloat16; dividing by cos² + sin² undoes that too

Shapes: `x` is (B, H, T, D); `cos` and `sin` are (B or 1, T, R) with R <= D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

Tables = tuple[Tensor, Tensor]  # cos, sin: (B or 1, T, R)


def rotate_half(x: Tensor) -> Tensor:
    """Turn every pair by 90 degrees: (x1, x2) becomes (-x2, x1)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Rotate `x` by the angles in the tables, computed in their dtype. dtype: of the result; None for the tables'."""
    dtype = dtype or cos.dtype
    if native.rotates(x, cos, sin):
        return native.rotate(x, cos, sin, dtype)
    width = cos.shape[-1]
    turned = x[..., :width].to(cos.dtype)
    turned = turned * cos.unsqueeze(1) + rotate_half(turned) * sin.unsqueeze(1)
    if width < x.shape[-1]:
        turned = torch.cat((turned, x[..., width:].to(cos.dtype)), dim=-1)
    return turned.to(dtype)


def inverse(tables: Tables) -> Tables:
    """Float32 tables of the rotation that undoes `tables`, scaling and rounding included."""
    cos, sin = tables[0].float(), tables[1].float()
    norm = cos.square() + sin.square()
    return cos / norm, -sin / norm


def compose(first: Tables, second: Tables) -> Tables:
    """Float32 tables of one rotation that does what `first` and then `second` do (angles add, scales multiply)."""
    cos_a, sin_a = first[0].float(), first[1].float()
    cos_b, sin_b = second[0].float(), second[1].float()
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


class Turns:
    """The rotation of a forward's tokens, and the float32 tables derived from it, made once for all layers.

    tables: cos and sin of the rotation, (B or 1, T, R) each.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._wide: Tables | None = None
        self._undo: Tables | None = None
        self._moved: tuple[Tables, Tables] | None = None

    def wide(self) -> Tables:
        """The tables in float32."""
        if self._wide is None:
            self._wide = self.tables[0].float(), self.tables[1].float()
        return self._wide

    def undo(self) -> Tables:
        """Tables that undo the rotation."""
        if self._undo is None:
            self._undo = inverse(self.wide())
        return self._undo

    def moved(self, far: Tables) -> Tables:
        """Tables that undo the rotation and then apply the rotation of `far`."""
        if self._moved is None or self._moved[0] is not far:
            self._moved = (far, compose(self.undo(), far))
        return self._moved[1]
