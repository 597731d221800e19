"""Language models with a memory: how a model is found, loaded and adapted, and what its memories depend on."""
