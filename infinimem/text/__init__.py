"""Text without files or models: passages, words, sentences, tokens, segments, term weights."""
