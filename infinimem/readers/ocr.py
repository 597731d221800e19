"""Recognizing the text of images, with RapidOCR and the models that its package carries; the extra `ocr`."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ReaderMissing

if TYPE_CHECKING:
    import numpy as np

MOST_PIXELS = 30_000_000
"""The most pixels of a page that is recognized; larger images are made smaller."""


# Lines that are recognized with less confidence are specks and drawings.
_LEAST = 0.5


@dataclass(frozen=True, slots=True)
class Recognized:
    """A line of text in an image.

    left, top, right, bottom: its place, in pixels from the upper left corner.
    confidence: between 0 and 1.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    confidence: float


def check_installed(path: Path) -> None:
    """Raise ReaderMissing where the extra is not installed."""
    for name in ("rapidocr", "onnxruntime", "pypdfium2"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ReaderMissing(
                f"to recognize the text in '{path.name}', install: pip install 'infinimem[ocr]'"
            ) from error


def recognize(image: np.ndarray) -> list[Recognized]:
    """The lines of text in an image, from top to bottom.

    image: (H, W, 3) uint8, in the order blue, green, red.
    """
    found = _engine()(image)
    if found.boxes is None:
        return []
    lines = []
    for box, text, confidence in zip(found.boxes.tolist(), found.txts, found.scores, strict=True):
        across, down = zip(*box, strict=True)
        if confidence >= _LEAST and text.strip():
            lines.append(Recognized(text, min(across), min(down), max(across), max(down), float(confidence)))
    return sorted(lines, key=lambda line: (line.top, line.left))


@cache
def _engine() -> Any:
    rapidocr = importlib.import_module("rapidocr")
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return rapidocr.RapidOCR(params={"Global.log_level": "error"})
