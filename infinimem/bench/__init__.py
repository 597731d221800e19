"""How fast this machine reads, loads and answers, with infinimem and with what else could be used.

Every measurement runs in a process of its own (`child`), so that its peak memory is its own; `run` starts them in turn
and puts medians and ratios together, `report` shows them. One module a system: `memory`, `full_attention`,
`langchain_minilm`, `llama_cpp`.
"""

SYSTEMS = ("infinimem", "transformers", "langchain-minilm", "llama.cpp")
# By default: tokens that all systems but full attention read, those that full attention reads, processes of a row.
TOKENS = 10_000
LENGTHS = (2048, 8192, 32768)
REPEATS = 3
SHORTEST = 128  # tokens that can be timed
