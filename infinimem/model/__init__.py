"""Language models with a memory: finding, loading, adapting, reading, naming what a memory depends on."""
