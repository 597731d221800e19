"""PDF: pages, lines and columns, words broken at the end of a line."""
