"""Which words are related, by the model's own input embeddings: fog and mist, sea and ocean, error and mistake.

- only words that are a single token have a vector; other words are related to nothing
- the mean of all embeddings and a few directions say how frequent a token is, not what it means; they are removed (as
  in "All-but-the-Top", arXiv 1702.01417)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..model.infini_model import InfiniModel
    from ..text.tokens import TextEncoder

# The number of directions that are removed.
DIRECTIONS = 3
# Directions are found from at least this many embeddings, and fewer than twice as many, evenly spaced in the table.
SAMPLE = 2048
# Rounds of the subspace iteration.
ROUNDS = 4
# The least number of letters of a word with a vector: shorter words are mostly grammar.
LETTERS = 3


_MADE: WeakKeyDictionary[InfiniModel, WordVectors] = WeakKeyDictionary()


class WordVectors:
    """Vectors of words from a table of input embeddings.

    embeddings: (V, E).
    encoder: encodes words for the same vocabulary.
    unknown: the token for text that the vocabulary lacks; None without such a token.
    """

    def __init__(self, embeddings: Tensor, encoder: TextEncoder, unknown: int | None = None) -> None:
        self._embeddings = embeddings.detach()
        self._encoder = encoder
        self._unknown = unknown
        sample = self._embeddings[:: max(1, len(embeddings) // SAMPLE)].float()
        self._mean = sample.mean(dim=0)
        sample = sample - self._mean
        # Subspace iteration finds the widest directions without computing the others.
        directions = torch.linalg.qr(sample[:DIRECTIONS].T).Q  # (E, DIRECTIONS)
        for _ in range(ROUNDS):
            directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
        self._directions = directions

    @classmethod
    def of(cls, model: InfiniModel) -> WordVectors:
        """Word vectors from a model's input embeddings; made once for each model."""
        if model not in _MADE:
            table: Any = model.model.get_input_embeddings()
            _MADE[model] = cls(table.weight, model.encoder, model.tokenizer.unk_token_id)
        return _MADE[model]

    def __call__(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The indexes (F,) of the words that have a vector, and their vectors of length 1, (F, E) float32.

        Capitals make no difference.
        """
        tokens: list[int | None] = [None] * len(words)
        # Names are often a single token only with a capital letter.
        for spelled in (str.lower, str.capitalize):
            left = [r for r, word in enumerate(words) if tokens[r] is None and len(word) >= LETTERS and word.isalpha()]
            for row, ids in zip(left, self._encoder.encode_words([spelled(words[row]) for row in left]), strict=True):
                tokens[row] = ids[0] if len(ids) == 1 and ids[0] != self._unknown else None
        found = [token for token in tokens if token is not None]
        chosen = torch.tensor(found, dtype=torch.long, device=self._embeddings.device)
        x = self._embeddings[chosen].float() - self._mean  # (F, E)
        x = torch.nn.functional.normalize(x - (x @ self._directions) @ self._directions.T, dim=-1)
        places = np.array([row for row, token in enumerate(tokens) if token is not None], np.int64)
        return places, x.cpu().numpy()
