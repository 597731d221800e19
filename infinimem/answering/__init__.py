"""From a question to an answer: prompts, decoding, ensembles of candidate prompts."""
