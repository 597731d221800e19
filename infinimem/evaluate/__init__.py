"""Measurements of a memory: each a function from a model and data to a plain dict."""
