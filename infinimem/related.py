"""Which words are related, as the model's own input embeddings have it: fog and mist, sea and ocean, error and mistake.

- only words that are a single token have a vector; the others are related to nothing
- embeddings have a mean and a few directions that say how frequent a token is, not what it means; those are taken out
  (as in "All-but-the-Top", arXiv 1702.01417)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .tokens import TextEncoder

# Directions that are taken out, and embeddings of which they are found, evenly from the whole table.
DIRECTIONS = 3
SAMPLE = 2048
ROUNDS = 4
# Shorter words are mostly grammar.
LETTERS = 3


class WordVectors:
    """Vectors of words from a table of input embeddings, (V, E)."""

    def __init__(self, embeddings: Tensor, encoder: TextEncoder) -> None:
        self._embeddings = embeddings.detach()
        self._encoder = encoder
        sample = self._embeddings[:: max(1, len(embeddings) // SAMPLE)].float()
        self._mean = sample.mean(dim=0)
        sample = sample - self._mean
        # Subspace iteration: the widest directions, without all the others.
        directions = torch.linalg.qr(sample[:DIRECTIONS].T).Q  # (E, DIRECTIONS)
        for _ in range(ROUNDS):
            directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
        self._directions = directions

    def __call__(self, words: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, (N, E) float32; zeros for words without one. Capitals make no difference."""
        found = np.zeros((len(words), self._embeddings.shape[1]), np.float32)
        tokens: list[int | None] = [None] * len(words)
        # Names are single tokens as they are written.
        for spelled in (str.lower, str.capitalize):
            left = [r for r, word in enumerate(words) if tokens[r] is None and len(word) >= LETTERS and word.isalpha()]
            for row, ids in zip(left, self._encoder.encode_words([spelled(words[row]) for row in left]), strict=True):
                tokens[row] = ids[0] if len(ids) == 1 else None
        rows = [row for row, token in enumerate(tokens) if token is not None]
        if rows:
            chosen = torch.tensor([token for token in tokens if token is not None], device=self._embeddings.device)
            x = self._embeddings[chosen].float() - self._mean
            x = x - (x @ self._directions) @ self._directions.T
            found[rows] = torch.nn.functional.normalize(x, dim=-1).cpu().numpy()
        return found
