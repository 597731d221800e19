"""Training of an adapter: LoRA and memory gates, by back-propagation through the memory, segment by segment."""
