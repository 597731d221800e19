"""`InfiniModel`: a pretrained causal language model that reads through a memory.

- wraps a stock transformers model; `read` streams tokens into an `InfiniCache`, `generate` answers from one
- while reading, the language-model head is not computed, and attention sees a segment, the tokens carried over from
  before it, and the memory: the same cost however long the text
- positions start at 0 in every segment and in every prompt: the memory knows no positions beyond them
- models that begin every text with a special token (Gemma, Llama) get it at the start of each segment too, as the
  place where attention rests; it is not written into the memory
"""

from __future__ import annotations

import contextlib
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import NoRepeatNGramLogitsProcessor

from . import heap
from .adapter import NO_ADAPTER, Adapter, check_lora, load_adapter, merge_lora, set_gates
from .address_head import AddressHead
from .addresses import last_tokens, to_bytes
from .attention import Attachment, InfiniCache, MemoryRule, State, attention_modules, make_rule
from .attention.attend import SeenEnough
from .attention.cache import CARRIED
from .attention.packing import packed_layout
from .attention.rules import Layout
from .attention.side_by_side import stack, unstack
from .decode import Rows, choose
from .errors import AdapterMismatch, DamagedMemoryFile, InvalidSetting
from .generation import check_limits
from .identity import config_subset, digest, hash_tokenizer, hash_weights
from .pretrained import DEFAULT_MODEL, load_base
from .related import WordVectors
from .segments import Segmenter
from .settings import (
    DEFAULT_CARRY,
    DEFAULT_SEGMENT_LENGTH,
    SHARE_WITHOUT_SLOTS,
    MemoryHeads,
    checked_heads,
    with_defaults,
)
from .tokens import TextEncoder

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Reading gives freed memory back after so many segments.
SEGMENTS_BETWEEN_TRIMS = 16
# Short segments side by side are padded to a multiple of so many tokens.
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
            memory_heads = range(0 if rule.gated else round(layers * SHARE_WITHOUT_SLOTS), layers)
        self.memory_heads = checked_heads(memory_heads, layers, heads)
        room = context - segment_length - len(self.prefix)
        self.carry = (0 if rule.gated else min(DEFAULT_CARRY, room)) if carry is None else carry
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
        self.adapter_name = self.adapter_hash = self.reader_hash = NO_ADAPTER
        self.addresses: AddressHead | None = None
        self._base_weights: str | None = None
        self._reader: Reader | None = None
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

        device: None takes a CUDA GPU if there is one. fetch: whether a hub id may be fetched. adapter: directory of
        an adapter, or the name of one in the package; it is merged into the weights. None takes the one that the
        package has for the default model, if any; "none" takes none. Rule, its settings, segment length, memory heads
        and carried tokens are by default those that the adapter was trained with, if it says so. Errors: those of
        `pretrained.load_base` and `adapter.load_adapter`, AdapterMismatch, InvalidSetting.
        """
        worn = load_adapter(adapter, model)
        memory = with_defaults(worn, rule, rule_settings, segment_length, memory_heads, carry)
        chosen = make_rule(memory.rule, **memory.settings)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        base, tokenizer, name = load_base(model, device=device, dtype=dtype, fetch=fetch)

        # Of the base, not of the sum, which rounds differently in every dtype; an adapter has a hash of its own.
        weights = None if worn is None else hash_weights(base)
        if worn is not None:
            merge_lora(base, worn)
        made = cls(
            base,
            tokenizer,
            chosen,
            segment_length=memory.segment_length,
            memory_heads=memory.heads,
            carry=memory.carry,
            name=name,
        )
        if worn is None:
            return made
        set_gates(made.attachment.modules, worn)
        made.adapter_name, made.adapter_hash, made._base_weights = worn.name, worn.sha256, weights
        if worn.addresses is not None:
            made.put_on(worn.addresses)
        if worn.reader is not None:
            reader = worn.reader
            check_lora(base, reader)

            def make_reader() -> InfiniModel:
                attachment = made.attachment.twin({f"{path}.weight" for path in reader.lora})
                merge_lora(attachment.model, reader)
                return made._over(attachment)

            made._reader, made.reader_hash = Reader(make_reader), reader.sha256
        return made

    def _over(self, attachment: Attachment) -> InfiniModel:
        """An InfiniModel like this one over another network, without head, reader and identity."""
        other = copy(self)
        other.model, other.attachment = attachment.model, attachment
        other._identity = other._base_weights = other._reader = other.addresses = None
        return other

    @property
    def reader(self) -> InfiniModel:
        """The model that answers from passages in its prompt: this one, or where its adapter has a reader, another one
        that is made on first use. It shares what the reader does not change; its memories are not those of this one."""
        return self if self._reader is None else self._reader.get()

    def put_on(self, head: AddressHead | None) -> None:
        """Weigh words with this head from now on. Raises AdapterMismatch where it is for another model."""
        if head is not None:
            width = int(self.model.config.get_text_config().hidden_size)
            settings = head.settings
            if settings.width != width or settings.layer >= self.num_layers:
                raise AdapterMismatch(
                    f"the adapter's head for addresses looks at layer {settings.layer}, width {settings.width}; the "
                    f"model '{self.name}' has {self.num_layers} layers of width {width}"
                )
            if not self.encoder.places:
                raise AdapterMismatch(f"the tokenizer of '{self.name}' does not say where tokens stand in a text")
            head = head.to(self.device)
        self.addresses = head

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
        if rule.gated and not self.rule.gated:
            raise InvalidSetting(f"rule {rule.name!r} needs gates; load the model with it instead")
        other = copy(self)
        other.rule, other._identity = rule, None
        return other

    def new_cache(self) -> InfiniCache:
        """An empty memory."""
        return InfiniCache(self.rule, self.num_layers, self.memory_heads, self.carry, len(self.prefix))

    def cache_from(self, states: Mapping[int, Mapping[str, np.ndarray]], seen: int) -> InfiniCache:
        """A memory from the state tensors of a file, (G, ...) each, into which `seen` tokens went.

        Raises DamagedMemoryFile where layers, names or shapes are not those that this model and rule write.
        """
        cache = self.new_cache()
        if not states and seen == 0:
            return cache
        kept, width = min(seen, self.carry), self.attachment.modules[0].head_dim
        heads = int(self.model.config.get_text_config().num_key_value_heads)
        loaded: dict[int, State] = {}
        for index in {*range(self.num_layers), *states}:
            remembering = self.memory_heads.get(index, []) if seen > self.carry else []
            needed: Layout = {}
            if remembering:
                layout = self.rule.layout(width, width)
                needed |= {name: (dtype, (len(remembering), *sizes)) for name, (dtype, sizes) in layout.items()}
            if kept and index < self.num_layers:
                layout = packed_layout(self.rule.packing, kept, width, width)
                needed |= {CARRIED + name: (dtype, (heads, *sizes)) for name, (dtype, sizes) in layout.items()}
            state = states.get(index, {})
            _check_layout(index, state, needed)
            slots = {tensor.shape[1] for name, tensor in state.items() if not name.startswith(CARRIED)}
            if not self.rule.gated and len(slots) > 1:
                raise DamagedMemoryFile(f"the tensors of layer {index} have different numbers of slots")
            if state:
                found = {name: torch.from_numpy(tensor.copy()) for name, tensor in state.items()}
                loaded[index] = {name: tensor[None].to(self.device) for name, tensor in found.items()}
        cache.set_states(loaded, torch.tensor([seen], device=self.device))
        return cache

    # Reading

    @torch.no_grad()
    def read_tokens(self, tokens: Iterable[int], cache: InfiniCache, weights: bytearray | None = None) -> int:
        """Read one row of token ids into the memory, in segments that end where sentences do; returns how many.

        weights: gets the weight of every token, a byte each (`addresses.to_bytes`); the model must have a head for it.
        """
        segments = 0
        for segment in self.segmenter.split(tokens):
            self.read_side_by_side([segment], [cache], [weights])
            segments += 1
        return segments

    @torch.no_grad()
    def read_side_by_side(
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
        head = self.addresses if any(row is not None for row in weights) else None
        rows.watched = None if head is None else head.settings.layer
        tokens = torch.tensor([[*segment, *[0] * (max(lengths) - len(segment))] for segment in segments])
        self.read_segment(tokens, rows, lengths=torch.tensor(lengths), pad_to=size)
        if head is not None:
            noted = self._noted(rows)
            for row, found in enumerate(weights):
                if found is not None:
                    found += to_bytes(head.passage(noted[row, : lengths[row]]).tolist())
        unstack(rows, caches)
        before, self._read = self._read, self._read + len(segments)
        if before // SEGMENTS_BETWEEN_TRIMS != self._read // SEGMENTS_BETWEEN_TRIMS:
            heap.give_back()

    def _noted(self, cache: InfiniCache) -> Tensor:
        """What the watched layer's attention saw of the segment and what was computed after it, (B, T, E)."""
        noted, cache.noted = cache.noted, None
        if noted is None:
            raise InvalidSetting(f"the model has no layer {cache.watched}, which its head for addresses looks at")
        return noted[:, len(self.prefix) :]

    @torch.no_grad()
    def inputs_while_reading(self, tokens: Iterable[int], layer: int) -> Iterator[Tensor]:
        """What enters the attention of a layer while tokens are read into an empty memory, (T, E) a segment.

        Nothing above that layer is computed.
        """
        cache = self.new_cache()
        for above in cache.layers[layer:]:
            above.heads, above.carry = (), 0
        cache.watched, cache.enough = layer, True
        for segment in self.segmenter.split(tokens):
            self.read_segment(torch.tensor([segment]), cache)
            yield self._noted(cache)[0]

    @torch.no_grad()
    def inputs_at(self, layer: int, tokens: Sequence[int]) -> Tensor:
        """What enters the attention of a layer, (T, E), for a text by itself; nothing above it is computed."""
        cache = self.new_cache()
        cache.watched, cache.enough = layer, True
        with contextlib.suppress(SeenEnough):
            ids = torch.tensor([[*self.prefix, *tokens]], device=self.device)
            self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        return self._noted(cache)[0]

    def echo(self, question: str, layer: int) -> tuple[list[int], Tensor]:
        """A question's words as the model sees them when it reads the question a second time: for each of
        `addresses.spans` the index of its last token, and the inputs of the layer at the second time's tokens, (T, E).

        A question has no more than half a segment of tokens; words after those have the index T.
        """
        most = max(1, self.segment_length // 2)
        first, (second, ends) = self.encoder.encode(f"{question}\n")[:most], self.encoder.encode_placed([question])
        seen = self.inputs_at(layer, [*first, *second[:most]])[len(first) :]
        return last_tokens(ends[:most], 0, question), seen

    def weigh(self, question: str) -> list[float]:
        """The weight of each of a question's words (`addresses.spans`), 0 for those of a very long one's end.

        Raises InvalidSetting without a head.
        """
        if self.addresses is None:
            raise InvalidSetting(f"the model '{self.name}' has no head that weighs words; rank with mode='lexical'")
        places, seen = self.echo(question, self.addresses.settings.layer)
        weights = self.addresses.question(seen).tolist()
        return [weights[place] if place < len(weights) else 0.0 for place in places]

    @cached_property
    def word_vectors(self) -> WordVectors:
        """Which words are related, as the input embeddings have it."""
        table: Any = self.model.get_input_embeddings()
        return WordVectors(table.weight, self.encoder, self.tokenizer.unk_token_id)

    @torch.no_grad()
    def read(self, tokens: Tensor, cache: InfiniCache, attention_mask: Tensor | None = None) -> None:
        """Read tokens (B, T) into the memory, in segments of equal length; the last one may be shorter.

        attention_mask: (B, T), 0 for padding. A row's result does not depend on its padding or its neighbours when
        its own segments start where they would alone: pad on the left of the last segment, or after the end.
        """
        for start in range(0, tokens.shape[1], self.segment_length):
            part = slice(start, start + self.segment_length)
            self.read_segment(tokens[:, part], cache, None if attention_mask is None else attention_mask[:, part])

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
        cache.end_segment(mask, written=slice(skip, skip + length))
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

    # Generating

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        cache: InfiniCache | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_at_eos: bool = True,
        no_repeat: int = 0,
    ) -> Iterator[list[int | None]]:
        """Continue prompts (lists of token ids) with one memory in view, a step for all of them at a time.

        Yields per step one token a prompt, None for prompts that have ended. The cache is cloned, never changed.
        temperature 0 is greedy; otherwise nucleus sampling with `top_p`, repeatable with `seed`.
        no_repeat: no so many tokens in a row come twice in one answer (0: any may); the prompt does not count, so
        copying from it stays free.
        """
        if not prompts or any(not prompt for prompt in prompts):
            raise InvalidSetting("there is nothing to continue: a prompt has no tokens")
        check_limits(max_new_tokens, temperature, top_p)
        rows = Rows(self, prompts, cache)
        generator = None
        if temperature > 0:
            generator = torch.Generator(device=self.device)
            generator.seed() if seed is None else generator.manual_seed(seed)
        ends = self.end_tokens if stop_at_eos else frozenset()
        running = [True] * len(prompts)
        said = torch.empty(len(prompts), 0, dtype=torch.long, device=self.device)
        fresh = NoRepeatNGramLogitsProcessor(no_repeat) if no_repeat else None
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits = rows.logits()
                if fresh is not None:
                    logits = fresh(said, logits)
                chosen = choose(logits, temperature, top_p, generator)  # (B,)
                said = torch.cat((said, chosen[:, None]), dim=1)
            step = chosen.tolist()
            running = [going and token not in ends for going, token in zip(running, step, strict=True)]
            yield [token if going else None for token, going in zip(step, running, strict=True)]
            if not any(running):
                return
            rows.add(chosen)

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

    # Identity

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
            self._identity = {
                "config": config_subset(self.model.config.get_text_config()),
                "weights": self._base_weights or hash_weights(self.model),
                "adapter": self.adapter_hash,
                "tokenizer": hash_tokenizer(self.tokenizer),
                "chat_template": digest(str(self.tokenizer.chat_template or "").encode()),
                "rule": self.rule.name,
                "rule_settings": self.rule.settings(),
                "segment_length": self.segment_length,
                "memory_heads": {str(layer): heads for layer, heads in self.memory_heads.items()},
                "carry": self.carry,
                "prefix": self.prefix,
            }
        return self._identity


class Reader:
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


_shared: weakref.WeakValueDictionary[str, InfiniModel] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_model(
    name: str | os.PathLike[str] | None,
    *,
    rule: str | None = None,
    rule_settings: dict[str, Any] | None = None,
    segment_length: int | None = None,
    memory_heads: MemoryHeads | None = None,
    carry: int | None = None,
    device: str | None = None,
    fetch: bool = True,
    adapter: str | os.PathLike[str] | None = None,
) -> InfiniModel:
    """`InfiniModel.from_pretrained`, loaded once per process for equal arguments, as long as anything uses it."""
    worn = load_adapter(adapter, name)
    memory = with_defaults(worn, rule, rule_settings, segment_length, memory_heads, carry)
    settings = make_rule(memory.rule, **memory.settings).settings()
    heads: Any = None if memory.heads is None else list(memory.heads)
    if isinstance(memory.heads, Mapping):
        heads = {int(layer): list(members) for layer, members in memory.heads.items()}
    # Missing heads and carry stand for the default ones, which the model alone knows.
    asked = [str(name or DEFAULT_MODEL), memory.rule, settings, memory.segment_length, device]
    asked += [worn.name, worn.sha256, worn.reader and worn.reader.sha256] if worn else []
    key = json.dumps([*asked, heads, memory.carry], sort_keys=True)
    with _shared_lock:
        model = _shared.get(key)
        if model is None:
            model = InfiniModel.from_pretrained(
                name,
                rule=memory.rule,
                rule_settings=settings,
                segment_length=memory.segment_length,
                memory_heads=heads,
                carry=memory.carry,
                device=device,
                fetch=fetch,
                adapter=worn or NO_ADAPTER,
            )
            _shared[key] = model
            _shared[json.dumps([*asked, model.memory_heads, model.carry], sort_keys=True)] = model
        return model


def _check_layout(index: int, state: Mapping[str, np.ndarray], needed: Layout) -> None:
    """Raise DamagedMemoryFile where a layer's tensors are not those needed; None in a shape stands for any size."""
    for name in {*state, *needed}:
        dtype, shape = needed.get(name, (None, ()))
        found = state.get(name, np.zeros(()))
        fits = len(found.shape) == len(shape) and all(
            need is None or have == need for have, need in zip(found.shape, shape, strict=True)
        )
        if not fits or str(found.dtype) != str(dtype).removeprefix("torch."):
            raise DamagedMemoryFile(
                f"layers.{index}.{name} is {found.dtype} {found.shape}, but the model needs {dtype} {shape}"
            )


def _prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that this tokenizer puts before every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    return list(full[: len(full) - len(plain)]) if full[len(full) - len(plain) :] == plain else []
