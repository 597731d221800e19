"""Finding passages: indexing them, ranking them for a query, choosing central ones."""
