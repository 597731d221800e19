"""Tables in a ranking: a passage with rows is worth what its best row is worth.

A question about a cell names a row and a column. Their words may also be spread over several rows of another table.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..text.passages import Passage
from ..text.sentences import CELLS
from ..text.words import FUNCTION_WORDS, WORD, stems

# The number of best passages whose rows are looked at.
MOST = 64
# A passage with rows keeps this power of its best row's share of the words that any of these passages has.
POWER = 3.0


def by_best_rows(
    passages: Sequence[Passage], query: str, ranked: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """The ranking, with lower scores for passages in which the words of the query stand in different rows.

    ranked: pairs (index of the passage, score), best first.
    """
    if not any(CELLS in passages[index].text for index, _ in ranked[:MOST]):
        return list(ranked)
    content = " ".join(word for word in WORD.findall(query) if word.lower() not in FUNCTION_WORDS)
    wanted = frozenset(stems(content))
    best = [_in_one_row(passages[index].text, wanted) for index, _ in ranked[:MOST]]
    most = max(best)
    if not most:
        return list(ranked)
    scored = [
        (index, score * (found / most) ** POWER if CELLS in passages[index].text else score)
        for (index, score), found in zip(ranked, best, strict=False)
    ]
    # A table far down may have been better than what was looked at; it stays below.
    return sorted(scored, key=lambda one: -one[1]) + list(ranked[MOST:])


def _in_one_row(text: str, wanted: frozenset[str]) -> int:
    """How many words of the query the best row has together with the names of its columns; or else the prose."""
    if CELLS not in text:
        return len(wanted.intersection(stems(text)))
    best = 0
    prose: list[str] = []
    for part in text.split("\n\n"):
        head, *rows = part.split("\n")
        if CELLS not in head or not rows:
            prose.append(part)
            continue
        names = wanted.intersection(stems(head))
        best = max(best, *(len(names | wanted.intersection(stems(row))) for row in rows))
    return max(best, len(wanted.intersection(stems("\n".join(prose)))))
