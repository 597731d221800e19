"""Measurements of a memory. Each is a function that takes a model and data, and returns a plain dict."""
