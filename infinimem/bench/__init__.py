"""How fast this machine reads, loads and answers, with infinimem and with other systems.

- every measurement runs in a separate process (`child`), so that its peak memory counts no other measurement
- `run` starts the measurements in turn, and computes medians and ratios; `report` shows them
- each system has a module: `document_memory`, `full_attention`, `langchain_minilm`, `llama_cpp`
"""

SYSTEMS = ("infinimem", "transformers", "langchain-minilm", "llama.cpp")
# Defaults: tokens to read, for all systems but full attention; tokens for full attention; processes per row.
TOKENS = 10_000
LENGTHS = (2048, 8192, 32768)
REPEATS = 3
SHORTEST = 128  # fewest tokens that can be timed
