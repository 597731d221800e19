"""How fast this machine reads, loads and answers, with infinimem and with what else could be used.

Every measurement runs in a process of its own (`child`), so that its peak memory is its own; `run` starts them in turn
and puts medians and ratios together, `report` shows them. One module a system: `memory`, `full_attention`,
`langchain_minilm`, `llama_cpp`.
"""
