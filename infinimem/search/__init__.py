"""Finding passages: indexing them, ranking them for a query, choosing central ones."""

from ..renamed import moved

__getattr__ = moved(__name__)
