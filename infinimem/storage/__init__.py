"""Files: the memory file, its layout, the passage table, atomic writes and locks. Needs no torch and no model."""
