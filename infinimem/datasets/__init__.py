"""Data sets in JSON Lines, checked and brought into one form; and invented facts to hide in texts."""
