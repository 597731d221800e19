"""Scanned pages and images: their text is recognized, and its lines are read like those of any other PDF page."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ...errors import DamagedSource
from ..ocr import MOST_PIXELS, Recognized, recognize
from ..page import Page, Visits
from .hyphens import Words
from .layout import Line, blocks_of
from .paragraphs import prose_of
from .side_by_side import joined

if TYPE_CHECKING:
    import numpy as np

_DPI = 200
_POINTS = 72 / _DPI  # of a pixel
# Of the height of letters: how far apart parts of one line may stand, and how much their middles may differ.
_GAP, _LEVEL = 1.2, 0.5
# Heights of recognized lines differ with the letters in them. Within these limits they are of one size.
_SMALLEST, _LARGEST = 0.7, 1.45


class Scans:
    """The pages of a PDF as images."""

    def __init__(self, path: Path) -> None:
        self._document: Any = importlib.import_module("pypdfium2").PdfDocument(path)

    def lines(self, index: int) -> tuple[list[Line], float]:
        """The recognized lines of a page, counted from 0, and the mean confidence."""
        page = self._document[index]
        width, height = page.get_size()
        scale = min(1 / _POINTS, (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
        # Drawn with the forms that people fill in, and in the order that the recognition expects.
        image = page.render(scale=scale, may_draw_forms=True, rev_byteorder=False).to_numpy()
        page.close()
        return lines_of(image, 1 / scale)


def lines_of(image: np.ndarray, points: float = _POINTS) -> tuple[list[Line], float]:
    """The recognized lines of an image, and the mean confidence, 0 where there are none.

    image: (H, W, 3) uint8, in the order blue, green, red.
    points: of a pixel.
    """
    found = _together(recognize(image[..., :3] if image.ndim == 3 else image))
    if not found:
        return [], 0.0
    usual = median(one.bottom - one.top for one in found)
    lines = []
    for one in found:
        height = one.bottom - one.top
        size = usual if _SMALLEST < height / usual < _LARGEST else height
        place = one.left * points, (image.shape[0] - one.bottom) * points
        # The box of a line is somewhat higher than its letters.
        lines.append(Line(one.text, *place, round(0.8 * size * points)))
    return lines, sum(one.confidence for one in found) / len(found)


def _together(found: Sequence[Recognized]) -> list[Recognized]:
    """The parts of each line as one, such as the number of an item and its text; from top to bottom, then to the right.

    All lines at one height get the same bottom, because the boxes of letters with and without tails differ.
    """
    rows: list[list[Recognized]] = []
    for part in sorted(found, key=lambda one: one.top + one.bottom):
        last = rows[-1][0] if rows else None
        if last is not None and _is_level(last, part):
            rows[-1].append(part)
        else:
            rows.append([part])
    lines: list[Recognized] = []
    for row in rows:
        bottom = median(one.bottom for one in row)
        first, *rest = sorted((replace(one, bottom=bottom) for one in row), key=lambda one: one.left)
        lines.append(first)
        for part in rest:
            before = lines[-1]
            if part.left - before.right <= _GAP * (part.bottom - part.top):
                text = f"{before.text} {part.text}"
                top, right = min(before.top, part.top), max(before.right, part.right)
                lines[-1] = replace(before, text=text, top=top, right=right)
            else:
                lines.append(part)
    return lines


def _is_level(one: Recognized, other: Recognized) -> bool:
    height = min(one.bottom - one.top, other.bottom - other.top)
    return abs(one.top + one.bottom - other.top - other.bottom) / 2 <= _LEVEL * height


def image_pages(path: Path, visits: Visits) -> Iterator[Page]:
    """Yield the recognized pages of an image file; a TIFF file may have several."""
    import numpy
    from PIL import Image, ImageSequence, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = 10 * MOST_PIXELS
    words = Words()
    try:
        with Image.open(path) as file:
            for number, frame in enumerate(ImageSequence.Iterator(file), start=1):
                if number in visits.left_out:
                    continue
                visits.begun(number)
                frame = frame.convert("RGB")
                frame.thumbnail((round(MOST_PIXELS**0.5),) * 2)
                lines, confidence = lines_of(numpy.asarray(frame)[..., ::-1])
                words.learn(line.text for line in lines)
                text, _ = prose_of(blocks_of(joined(lines)), words)
                visits.check_size(number, len(text), path.name)
                if text:
                    yield Page(number, text, confidence=confidence)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DamagedSource(
            f"'{path.name}' is a damaged image, or one that is too large ({str(error)[:80]}); save it again"
        ) from error
