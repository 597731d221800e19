"""Language models with a memory: how a model is found, loaded and adapted, and what its memories depend on."""

from ..renamed import moved

__getattr__ = moved(__name__)
