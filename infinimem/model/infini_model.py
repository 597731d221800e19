"""`InfiniModel`: a pretrained causal language model that reads through a memory.

- a stock transformers model; `read_tokens` streams tokens into an `InfiniCache`, from which answers are decoded
- while reading, the language-model head is not computed, and attention sees a segment, the tokens carried over from
  before it, and the memory: the same cost however long the text
- positions start at 0 in every segment and in every prompt: the memory knows no positions beyond them
- models that begin every text with a special token (Gemma, Llama) get it at the start of each segment too, as the
  place where attention rests; it is not written into the memory
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention import (
    Attachment,
    GatedRule,
    InfiniCache,
    MemoryRule,
    attention_modules,
    end_segment,
)
from ..attention.attend import SeenEnough
from ..attention.batch import stack, unstack
from ..errors import AdapterMismatch, InvalidSetting
from ..text.segments import Segmenter
from ..text.term_weights import to_bytes
from ..text.tokens import TextEncoder
from .adapter import NO_ADAPTER, Adapter, load_adapter
from .identity import hash_weights, identity_of
from .lora import check_lora, merge_lora, set_gates
from .pretrained import load_base
from .settings import (
    DEFAULT_CARRY,
    DEFAULT_SEGMENT_LENGTH,
    SHARE_WITHOUT_SLOTS,
    MemoryHeads,
    MemorySettings,
    checked_heads,
)
from .term_head import TermHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Ingestion gives freed memory back to the system after so many segments.
SEGMENTS_BETWEEN_TRIMS = 16
# Short segments in one batch are padded to a multiple of so many tokens.
PADDING = 64


class InfiniModel:
    """A causal language model with a compressive memory in its attention layers.

    model, tokenizer: from transformers; the model is changed in place (`close` undoes it). rule: a MemoryRule.
    segment_length: most tokens per segment. memory_heads: layers that get a memory, or layer to KV heads that get one;
    None for all of them, or all but the lowest fifth of the layers under `slots`. carry: tokens that each segment
    leaves to the next one as they are, in all layers; None for 256, or none under the paper's rules. name: what files
    call the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rule: MemoryRule,
        *,
        segment_length: int = DEFAULT_SEGMENT_LENGTH,
        memory_heads: MemoryHeads | None = None,
        carry: int | None = None,
        name: str = "custom",
    ) -> None:
        if segment_length < 1:
            raise InvalidSetting(f"segment_length is {segment_length}, but a segment has at least one token")
        self.prefix = _prefix_tokens(tokenizer)
        context = int(model.config.get_text_config().max_position_embeddings)
        if segment_length + len(self.prefix) > context:
            raise InvalidSetting(f"segment_length is {segment_length}, but the model's context has {context} tokens")
        layers = len(attention_modules(model))
        heads = int(model.config.get_text_config().num_key_value_heads)
        if memory_heads is None:
            memory_heads = range(0 if isinstance(rule, GatedRule) else round(layers * SHARE_WITHOUT_SLOTS), layers)
        self.memory_heads = checked_heads(memory_heads, layers, heads)
        room = context - segment_length - len(self.prefix)
        self.carry = (0 if isinstance(rule, GatedRule) else min(DEFAULT_CARRY, room)) if carry is None else carry
        if not 0 <= self.carry <= room:
            raise InvalidSetting(
                f"carry is {carry}; beside a segment the model's context has room for 0 to {room} tokens"
            )
        self.attachment = Attachment(model, rule)
        self.model = model
        self.tokenizer = tokenizer
        self.rule = rule
        self.segment_length = segment_length
        self.num_layers = layers
        self.name = name
        self.encoder = TextEncoder(tokenizer)
        self.segmenter = Segmenter(tokenizer, segment_length)
        self._read = 0
        self.adapter_name = self.adapter_hash = self.answer_adapter_hash = NO_ADAPTER
        self.term_head: TermHead | None = None
        self._base_weights: str | None = None
        self._answering: LazyModel | None = None
        self._identity: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        rule: str | None = None,
        rule_settings: dict[str, Any] | None = None,
        segment_length: int | None = None,
        memory_heads: MemoryHeads | None = None,
        carry: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        fetch: bool = True,
        adapter: str | os.PathLike[str] | Adapter | None = None,
    ) -> InfiniModel:
        """Load a base model (None: the embedded default) and give it a memory.

        model: None, a directory, or a hub id.
        rule, rule_settings, segment_length, memory_heads, carry: of the memory; None for what the adapter was trained
            with, if it says so, else for the default.
        device: None takes a CUDA GPU if there is one.
        dtype: of the weights; None for bfloat16, or float32 where that is clearly faster.
        fetch: whether a hub id may be fetched.
        adapter: directory of an adapter, or the name of one in the package; it is merged into the weights. None takes
            the one that the package has for the default model, if any; "none" takes none.
        Errors: those of `pretrained.load_base` and `adapter.load_adapter`, AdapterMismatch, InvalidSetting.
        """
        settings = MemorySettings(rule, rule_settings, segment_length, memory_heads, carry, device, adapter)
        return cls.load(model, settings, dtype=dtype, fetch=fetch)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None,
        settings: MemorySettings,
        *,
        dtype: torch.dtype | None = None,
        fetch: bool = True,
    ) -> InfiniModel:
        """`from_pretrained` with the settings as one thing."""
        adapter = load_adapter(settings.adapter, model)
        memory = settings.resolved(adapter)
        rule = memory.make_rule()
        device = memory.device or ("cuda" if torch.cuda.is_available() else "cpu")
        base, tokenizer, name = load_base(model, device=device, dtype=dtype, fetch=fetch)
        # Of the base, not of the sum, which rounds differently in every dtype; an adapter has a hash of its own.
        weights = None if adapter is None else hash_weights(base)
        if adapter is not None:
            merge_lora(base, adapter)
        made = cls(
            base,
            tokenizer,
            rule,
            segment_length=memory.segment_length or DEFAULT_SEGMENT_LENGTH,
            memory_heads=memory.memory_heads,
            carry=memory.carry,
            name=name,
        )
        made._base_weights = weights
        if adapter is not None:
            made._use(adapter)
        return made

    def _use(self, adapter: Adapter) -> None:
        """Take over the parts of an adapter beside its LoRA, which is merged already."""
        set_gates(self.attachment.modules, adapter)
        self.adapter_name, self.adapter_hash = adapter.name, adapter.sha256
        if adapter.term_head is not None:
            self.use_term_head(adapter.term_head)
        if (answer := adapter.answer) is not None:
            check_lora(self.model, answer)

            def make() -> InfiniModel:
                attachment = self.attachment.twin({f"{path}.weight" for path in answer.lora})
                merge_lora(attachment.model, answer)
                other = copy(self)
                other.model, other.attachment = attachment.model, attachment
                other._identity = other._base_weights = other._answering = other.term_head = None
                return other

            self._answering, self.answer_adapter_hash = LazyModel(make), answer.sha256

    @property
    def answering_model(self) -> InfiniModel:
        """The model that answers from passages in its prompt: this one, or, where the adapter has an answer adapter,
        another one that is made on first use and shares all weights that the answer adapter does not change. Memories
        of this model are not memories of that one."""
        return self if self._answering is None else self._answering.get()

    def use_term_head(self, head: TermHead | None) -> None:
        """Weigh words with this head from now on. Raises AdapterMismatch where it is for another model."""
        if head is not None:
            width = int(self.model.config.get_text_config().hidden_size)
            settings = head.settings
            if settings.width != width or settings.layer >= self.num_layers:
                raise AdapterMismatch(
                    f"the adapter's term head looks at layer {settings.layer}, width {settings.width}; the model "
                    f"'{self.name}' has {self.num_layers} layers of width {width}"
                )
            if not self.encoder.places:
                raise AdapterMismatch(f"the tokenizer of '{self.name}' does not say where tokens stand in a text")
            head = head.to(self.device)
        self.term_head = head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def close(self) -> None:
        """Give the wrapped model back as it was; an adapter stays merged into it."""
        self.attachment.detach()

    def with_rule(self, rule: MemoryRule) -> InfiniModel:
        """This model with another rule, over the same weights and hooks: nothing is loaded, both can be used.

        Close the original alone. Raises InvalidSetting where a rule needs gates that this model does not have.
        """
        if isinstance(rule, GatedRule) and not isinstance(self.rule, GatedRule):
            raise InvalidSetting(f"rule {rule.name!r} needs gates; load the model with it instead")
        other = copy(self)
        other.rule, other._identity = rule, None
        return other

    def new_cache(self) -> InfiniCache:
        """An empty memory."""
        return InfiniCache(self.rule, self.num_layers, self.memory_heads, self.carry, len(self.prefix))

    @torch.no_grad()
    def read_tokens(self, tokens: Iterable[int], cache: InfiniCache, weights: bytearray | None = None) -> int:
        """Read one row of token ids into the memory, in segments that end where sentences do; returns how many.

        weights: gets the weight of every token, a byte each (`term_weights.to_bytes`); the model must have a term head.
        """
        segments = 0
        for segment in self.segmenter.split(tokens):
            self.read_batch([segment], [cache], [weights])
            segments += 1
        return segments

    @torch.no_grad()
    def read_batch(
        self,
        segments: Sequence[Sequence[int]],
        caches: Sequence[InfiniCache],
        weights: Sequence[bytearray | None],
    ) -> None:
        """Read a segment into each of several memories, in one forward: as one after the other, but for rounding.

        segments: token ids, at least one and at most `segment_length` each. weights: as for `read_tokens`.
        """
        lengths = [len(segment) for segment in segments]
        size = max(lengths)
        # Few shapes: every other one leaves compiled kernels of its own in memory.
        if size > self.segment_length // 2:
            size = self.segment_length
        elif len(segments) > 1:
            size = min(self.segment_length, -(-size // PADDING) * PADDING)
        rows = stack(caches)
        head = self.term_head if any(row is not None for row in weights) else None
        rows.watched = None if head is None else head.settings.layer
        tokens = torch.tensor([[*segment, *[0] * (max(lengths) - len(segment))] for segment in segments])
        self.read_segment(tokens, rows, lengths=torch.tensor(lengths), pad_to=size)
        if head is not None:
            inputs = rows.watched_inputs()
            for row, found in enumerate(weights):
                if found is not None:
                    found += to_bytes(head.passage(inputs[row, : lengths[row]]).tolist())
        unstack(rows, caches)
        before, self._read = self._read, self._read + len(segments)
        if before // SEGMENTS_BETWEEN_TRIMS != self._read // SEGMENTS_BETWEEN_TRIMS:
            give_back_memory()

    def read_segment(
        self,
        tokens: Tensor,
        cache: InfiniCache,
        attention_mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        logits: bool = False,
        hidden: bool = False,
        pad_to: int = 0,
    ) -> Tensor | None:
        """Read one segment (B, T) and write it into the memory; with `logits`, also return them, (B, T, V).

        lengths: tokens of each row (B,), where the rest is padding. hidden: return the last hidden states (B, T, E)
        instead, for `head`. pad_to: compute on at least so many tokens; those after the T given are neither seen nor
        written. Gradients flow if they are enabled.
        """
        batch, length = tokens.shape
        skip = len(self.prefix)
        tokens = F.pad(tokens.to(self.device), (0, max(0, pad_to - length)))
        if skip:
            head = torch.tensor(self.prefix, device=self.device).expand(batch, -1)
            tokens = torch.cat((head, tokens), dim=1)
        inputs: dict[str, Any] = {"input_ids": tokens}
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = attention_mask.to(self.device).bool()
            full = F.pad(torch.cat((mask.new_ones(batch, skip), mask), dim=1), (0, max(0, pad_to - length)))
            inputs |= {"attention_mask": full.long(), "position_ids": (full.long().cumsum(-1) - 1).clamp_min(0)}
        elif lengths is not None and bool((lengths < length).any()):
            # Tokens do not see what comes after them, so it is enough not to write it.
            mask = (torch.arange(length) < lengths.unsqueeze(-1)).to(self.device)
        cache.recording()
        network = self.model if logits else self.model.get_decoder()
        output: Any = None
        with contextlib.suppress(SeenEnough):
            output = network(**inputs, past_key_values=cache, use_cache=True)
        end_segment(cache, mask, written=slice(skip, skip + length))
        cache.recording(False)
        if not logits and not hidden:
            return None
        found: Tensor = output.logits if logits else output.last_hidden_state
        return found[:, skip : skip + length]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of last hidden states (..., E), as the whole model would compute them."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def merge_caches(self, caches: Sequence[InfiniCache]) -> InfiniCache:
        """One memory of several, by the rule's `merge`, as if read in this order; empty ones add nothing."""
        result = self.new_cache()
        for cache in caches:
            result = result.merged(cache)
        return result

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends: set[int] = set()
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        for value in (configured, self.tokenizer.eos_token_id):
            if isinstance(value, (list, tuple)):
                ends.update(value)
            elif isinstance(value, int):
                ends.add(value)
        return frozenset(ends)

    def describe(self) -> dict[str, Any]:
        """What measurements depend on, for people; `identity` has all that memory files depend on."""
        return {
            "model": self.name,
            "adapter": self.adapter_name,
            "rule": self.rule.name,
            "rule_settings": self.rule.settings(),
            "segment_length": self.segment_length,
            "memory_heads": sum(map(len, self.memory_heads.values())),
            "carry": self.carry,
        }

    def identity(self) -> dict[str, Any]:
        """What a memory depends on: two models with equal identities can use each other's memory files.

        The weights enter as a sample (up to 4,096 elements of every tensor), not byte for byte.
        """
        if self._identity is None:
            memory = {
                "adapter": self.adapter_hash,
                "rule": self.rule.name,
                "rule_settings": self.rule.settings(),
                "segment_length": self.segment_length,
                "memory_heads": {str(layer): heads for layer, heads in self.memory_heads.items()},
                "carry": self.carry,
                "prefix": self.prefix,
            }
            self._identity = identity_of(self.model, self.tokenizer, self._base_weights) | memory
        return self._identity


class LazyModel:
    """A model that is made once, by whichever thread needs it first."""

    def __init__(self, make: Callable[[], InfiniModel]) -> None:
        self._make = make
        self._made: InfiniModel | None = None
        self._lock = threading.Lock()

    def get(self) -> InfiniModel:
        """The model."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that this tokenizer puts before every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return list(full[: len(full) - len(plain)]) if full[len(full) - len(plain) :] == plain else []


@functools.cache
def _malloc_trim() -> Any:
    """glibc's function; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Give freed memory back to the system, where the C library can; about as costly as touching it again."""
    if (trim := _malloc_trim()) is not None:
        trim(0)
