"""`InfiniModel`: a pretrained causal language model that reads through a memory.

- it wraps a stock transformers model; `read_tokens` streams tokens into an `InfiniCache`, and answers are decoded from
  this cache
- while the model reads, the language-model head is not computed, and attention sees one segment, the tokens that were
  carried over to it, and the memory: a segment costs the same however long the text is
- positions start at 0 in every segment and in every prompt; the memory itself has no positions
- some models begin every text with a special token (Gemma, Llama), on which attention rests. Their segments begin with
  this token too; it is not written into the memory
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
from .adapter import Adapter, load_adapter
from .directories import NO_ADAPTER
from .identity import IN_MEMORY, hash_weights, identity_of
from .lora import add_lora, check_lora, merge_lora, set_gates
from .pretrained import chosen_model, load_base
from .quantized import quantize
from .settings import (
    DEFAULT_CARRY,
    DEFAULT_SEGMENT_LENGTH,
    SHARE_WITHOUT_SLOTS,
    WEIGHTS,
    MemoryHeads,
    MemorySettings,
    checked_heads,
)
from .term_head import TermHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Ingestion gives freed memory back to the system each time after this many segments.
SEGMENTS_BETWEEN_TRIMS = 16
# Short segments in one batch are padded to a multiple of this many tokens.
PADDING = 64


class InfiniModel:
    """A causal language model with a compressive memory in its attention layers.

    model: from transformers; it is changed in place, and `close` undoes the change.
    tokenizer: from transformers.
    rule: how the memory is written and read.
    segment_length: most tokens of a segment.
    memory_heads: layers with a memory, or layer to KV heads with a memory. None for all heads of all layers under the
        paper's rules, and of all but the lowest fifth of the layers under `slots` and `recent`.
    carry: number of tokens that each segment carries over to the next segment unchanged, in all layers. None for 0
        under the paper's rules, else for 256, or fewer where the model's context has less room.
    name: the name by which memory files call the model.
    Raises InvalidSetting, and NoRotaryEmbedding where the model's family cannot have a memory.
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
        # Whether an adapter of this project was trained to answer with this model.
        self.trained = False
        self.term_head: TermHead | None = None
        self.weights = WEIGHTS[0]
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
        weights: str | None = None,
    ) -> InfiniModel:
        """Load a base model and give it a memory.

        model: None for the default model, a name of the catalogue, a directory, a GGUF file, or a hub id.
        rule, rule_settings, segment_length, memory_heads, carry: as in `MemorySettings`; None for the value that the
            adapter was trained with, where the adapter gives it, else for the default.
        device: None takes a CUDA GPU if there is one.
        dtype: of the weights; None for bfloat16, or for float32 where float32 is clearly faster.
        fetch: as for `pretrained.load_base`.
        adapter: directory of an adapter, name of an adapter in the package, or an Adapter; it is merged into the
            weights. None takes the package's adapter for the default model, and no adapter for other models; "none"
            takes no adapter.
        weights: "int8" keeps the weights in half the room of "bfloat16"; None for what suits the model.
        Raises AdapterMismatch, InvalidSetting, and the errors of `pretrained.load_base` and `adapter.load_adapter`.
        """
        settings = MemorySettings(rule, rule_settings, segment_length, memory_heads, carry, device, adapter, weights)
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
        """`from_pretrained`, with the settings in one object."""
        model = chosen_model(model)
        adapter = load_adapter(settings.adapter, model)
        memory = settings.resolved(adapter, model)
        rule = memory.make_rule()
        device = memory.device or ("cuda" if torch.cuda.is_available() else "cpu")
        base, tokenizer, name = load_base(model, device=device, dtype=dtype, fetch=fetch)
        # The hash is of the base weights, because merged weights round differently in every dtype; the adapter has its
        # own hash, and so has the way in which weights are kept.
        small = memory.weights == "int8"
        weights = hash_weights(base) if small or adapter is not None else None
        if small:
            if adapter is not None:
                check_lora(base, adapter)
            quantize(base, adapter)
        elif adapter is not None:
            merge_lora(base, adapter)
        length = memory.segment_length
        made = cls(
            base,
            tokenizer,
            rule,
            segment_length=DEFAULT_SEGMENT_LENGTH if length is None else length,
            memory_heads=memory.memory_heads,
            carry=memory.carry,
            name=name,
        )
        made._base_weights, made.weights = weights, str(memory.weights)
        if adapter is not None:
            made._use(adapter)
        give_back_memory()
        return made

    def _use(self, adapter: Adapter) -> None:
        """Take over the other parts of an adapter whose LoRA is already merged."""
        set_gates(self.attachment.modules, adapter)
        self.adapter_name, self.adapter_hash = adapter.name, adapter.sha256
        self.trained = bool(adapter.memory) or adapter.answer is not None
        if adapter.term_head is not None:
            self.use_term_head(adapter.term_head)
        if (answer := adapter.answer) is not None:
            check_lora(self.model, answer)

            def make() -> InfiniModel:
                merged = self.weights == WEIGHTS[0]
                attachment = self.attachment.twin({f"{path}.weight" for path in answer.lora} if merged else set())
                (merge_lora if merged else add_lora)(attachment.model, answer)
                other = copy(self)
                other.model, other.attachment = attachment.model, attachment
                other._identity = other._base_weights = other._answering = other.term_head = None
                return other

            self._answering, self.answer_adapter_hash = LazyModel(make), answer.sha256

    @property
    def answering_model(self) -> InfiniModel:
        """The model that answers from passages in its prompt.

        Where the adapter has an answer adapter, this is a second model, which is made on first use and shares all
        weights that the answer adapter does not change; it cannot use memories of this model. Otherwise it is this
        model itself.
        """
        return self if self._answering is None else self._answering.get()

    def use_term_head(self, head: TermHead | None) -> None:
        """Weigh words with this term head from now on; None weighs no words.

        Raises AdapterMismatch where the head is for another model, or where the tokenizer does not say where its tokens
        stand in a text.
        """
        if head is not None:
            width = int(self.model.config.get_text_config().hidden_size)
            settings = head.settings
            if settings.width != width or settings.layer >= self.num_layers:
                raise AdapterMismatch(
                    f"the adapter's term head looks at layer {settings.layer}, width {settings.width}; the model "
                    f"'{self.name}' has {self.num_layers} layers of width {width}"
                )
            if not self.encoder.places:
                raise AdapterMismatch(
                    f"the tokenizer of '{self.name}' does not say where tokens stand in a text, so words can have no "
                    "term weights; use an adapter without a term head"
                )
            head = head.to(self.device)
        self.term_head = head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def close(self) -> None:
        """Restore the wrapped model's own attention; an adapter stays merged into the weights."""
        self.attachment.detach()

    def with_rule(self, rule: MemoryRule) -> InfiniModel:
        """This model with another memory rule, on the same weights and hooks: nothing is loaded, and both can be used.

        Close only the original. Raises InvalidSetting where the rule needs gates, which this model does not have.
        """
        if isinstance(rule, GatedRule) and not isinstance(self.rule, GatedRule):
            raise InvalidSetting(f"the rule {rule.name!r} needs gates; load the model with this rule instead")
        other = copy(self)
        other.rule, other._identity = rule, None
        return other

    def new_cache(self) -> InfiniCache:
        """An empty memory."""
        return InfiniCache(self.rule, self.num_layers, self.memory_heads, self.carry, len(self.prefix))

    @torch.no_grad()
    def read_tokens(self, tokens: Iterable[int], cache: InfiniCache, weights: bytearray | None = None) -> int:
        """Read token ids into a memory, in segments that end where sentences do; returns the number of segments.

        cache: the memory; changed in place.
        weights: gets the weight of every token, one byte each (`term_weights.to_bytes`), if the model has a term head.
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
        """Read one segment into each of several memories, in one forward.

        segments: token ids, at least one and at most `segment_length` each.
        caches: one memory for each segment, changed in place.
        weights: for each segment, as for `read_tokens`.

        Up to rounding, the memories are those of segments that are read one after the other.
        """
        lengths = [len(segment) for segment in segments]
        size = max(lengths)
        # Few shapes, because the compiled kernels of every shape stay in memory.
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
        """Read one segment and write it into the memory. Gradients flow if they are enabled.

        tokens: (B, T) token ids.
        cache: the memory; changed in place.
        attention_mask: (B, T), 0 for padding; None without padding.
        lengths: (B,) tokens of each row; the rest of the row is padding.
        logits: whether to return the logits, (B, T, V).
        hidden: whether to return the last hidden states, (B, T, E), for `head`.
        pad_to: compute on at least this many tokens; tokens after the T given tokens are neither seen nor written.
        Returns None without `logits` and `hidden`.
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
            # No token sees the padding after it, so it is enough not to write the padding.
            mask = (torch.arange(length) < lengths.unsqueeze(-1)).to(self.device)
        network = self.model if logits else self.model.get_decoder()
        output: Any = None
        # With gradients a forward is left whole, because checkpoints run parts of it again.
        cache.recording(alone=not logits and not hidden and not torch.is_grad_enabled())
        try:
            with contextlib.suppress(SeenEnough):
                output = network(**inputs, past_key_values=cache, use_cache=True)
        finally:
            cache.recording(False)
        end_segment(cache, mask, written=slice(skip, skip + length))
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
        """One memory made of several by the rule's `merge`, in the order of reading; empty memories add nothing."""
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
        """The settings that measurements depend on, for people; `identity` has all that memory files depend on."""
        return {
            "model": self.name,
            "adapter": self.adapter_name,
            "weights": self.weights,
            "rule": self.rule.name,
            "rule_settings": self.rule.settings(),
            "segment_length": self.segment_length,
            "memory_heads": sum(map(len, self.memory_heads.values())),
            "carry": self.carry,
        }

    def identity(self) -> dict[str, Any]:
        """What a memory depends on: two models with equal identities can use each other's memory files.

        The weights enter as a sample (`identity.hash_weights`), not byte for byte.
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
            # Files of older releases do not name how the weights were kept.
            if self.weights != WEIGHTS[0]:
                memory[IN_MEMORY] = self.weights
            self._identity = identity_of(self.model, self.tokenizer, self._base_weights) | memory
        return self._identity


class LazyModel:
    """A model that is made once, by the first thread that needs it."""

    def __init__(self, make: Callable[[], InfiniModel]) -> None:
        self._make = make
        self._made: InfiniModel | None = None
        self._lock = threading.Lock()

    def get(self) -> InfiniModel:
        """The model, made on the first call."""
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
    """Give freed memory back to the system, where the C library can; this costs about as much as touching it again."""
    if (trim := _malloc_trim()) is not None:
        trim(0)
