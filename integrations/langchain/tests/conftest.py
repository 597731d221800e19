"""One loaded model and two small memories for all tests; the sample handbook where a user's view matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinimem import DocumentMemory

REPOSITORY = Path(__file__).parents[3]
INK = (
    "The recorder's pen takes violet ink. The ink is made of glycerine, distilled water and aniline dye.\n\n"
    "The harbour bell weighs ninety kilograms. It was cast in Ghent and is rung twice before a storm.\n\n"
    "The captain of the Heron was Odile Marchetti. Her parrot spoke Danish and disliked the mate.\n\n"
    "A lighthouse keeper counts the ships that pass before breakfast, and writes their number into the book.\n\n"
)
BREAD = "The baker of Vaisey sells rye bread on Tuesdays. His oven is older than the church.\n\n"
QUESTION = "What is the violet ink made of?"


def long_pages(text: str, times: int) -> str:
    """Enough text for several passages."""
    return "".join(f"Note {i}. {text}" for i in range(times))


@pytest.fixture(scope="session")
def memory() -> DocumentMemory:
    return DocumentMemory.from_text(long_pages(INK, 6), name="harbour.txt")


@pytest.fixture(scope="session")
def other_memory() -> DocumentMemory:
    return DocumentMemory.from_text(long_pages(BREAD, 20), name="bakery.txt")


@pytest.fixture(scope="session")
def handbook_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("handbook") / "handbook.safetensors"
    DocumentMemory.ingest(REPOSITORY / "examples" / "handbook.pdf").save(target)
    return target
