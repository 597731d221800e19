"""What is written on a PDF page beside its text: values of form fields, free text and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..prose import tidy

# A page may have any number of annotations, and a field any number of parents, itself among them.
_MOST, _DEEPEST, _LONGEST = 2_000, 16, 4_000
_WRITTEN = frozenset({"/FreeText", "/Text"})
# The state of a box that is not ticked.
_OFF = frozenset({"/Off", ""})


@dataclass(frozen=True, slots=True)
class Beside:
    """What is known of a page beside its lines.

    paragraphs: of fields, free text and notes.
    left_out: number of annotations that were left out.
    image: whether the page has an image, and no lines.
    confidence: of the recognition of its lines; None where they were not recognized.
    """

    paragraphs: Sequence[str] = ()
    left_out: int = 0
    image: bool = False
    confidence: float | None = None


def annotations_of(page: Any) -> Beside:
    """Paragraphs in the order of the file: fields as "name: value", one a line; then texts and notes.

    page: pypdf's page.
    """
    fields: dict[str, None] = {}
    texts: dict[str, None] = {}
    found = list(page.get("/Annots") or ())
    left_out = max(0, len(found) - _MOST)
    for reference in found[:_MOST]:
        annotation = reference.get_object()
        if not hasattr(annotation, "get"):
            left_out += 1
            continue
        kind = annotation.get("/Subtype")
        if kind == "/Widget":
            fields[_field(annotation)] = None
        elif kind in _WRITTEN:
            content = annotation.get("/Contents")
            texts[_plain(content)] = None
            left_out += isinstance(content, str) and len(content) > _LONGEST
    lines = "\n".join(filter(None, fields))
    return Beside([paragraph for paragraph in (lines, *texts) if paragraph], left_out)


def has_image(page: Any) -> bool:
    """Whether a page shows an image, so far as its own resources tell.

    page: pypdf's page.
    """
    try:
        resources = page.get("/Resources", {}).get_object()
        objects = resources.get("/XObject", {}).get_object().values()
        return any(one.get_object().get("/Subtype") == "/Image" for one in objects)
    except (OSError, MemoryError):
        raise
    except Exception:
        # A parser can fail in any way on broken resources.
        return False


def _field(annotation: Any) -> str:
    """A field as "name: value"; empty where it has no value."""
    names: list[str] = []
    title = ""
    value: Any = None
    node = annotation
    for _ in range(_DEEPEST):
        if not hasattr(node, "get"):
            break
        names.insert(0, _plain(node.get("/T")))
        title = title or _plain(node.get("/TU"))
        value = node.get("/V") if value is None else value
        node = node.get("/Parent")
        node = None if node is None else node.get_object()
    found = value.get_object() if hasattr(value, "get_object") else value
    text = ", ".join(filter(None, map(_plain, found))) if isinstance(found, list) else _plain(found)
    name = title or ".".join(filter(None, names))
    return "" if text in _OFF else f"{name}: {text.lstrip('/')}" if name else text


def _plain(value: Any) -> str:
    value = value.get_object() if hasattr(value, "get_object") else value
    return tidy(value[:_LONGEST]).replace("\n", " ") if isinstance(value, str) else ""
