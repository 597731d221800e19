"""Which questions of a data set are asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from ..datasets.documents import Document
from ..errors import InvalidSetting

Q = TypeVar("Q")


def choose_questions(documents: Sequence[Document[Q]], limit: int | None, seed: int) -> list[Document[Q]]:
    """Questions drawn at random from the documents, as evenly over the documents as possible.

    limit: most questions in all; None for all.
    Raises InvalidSetting for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidSetting(f"limit is {limit}; ask at least one question")
    generator = random.Random(seed)
    pools = [generator.sample(document.questions, len(document.questions)) for document in documents]
    order = generator.sample(range(len(documents)), len(documents))
    taken = [0] * len(documents)
    left = sum(map(len, pools)) if limit is None else min(limit, sum(map(len, pools)))
    while left:
        for index in order:
            if left and taken[index] < len(pools[index]):
                taken[index] += 1
                left -= 1
    return [
        replace(document, questions=tuple(pool[:count]))
        for document, pool, count in zip(documents, pools, taken, strict=True)
        if count
    ]
