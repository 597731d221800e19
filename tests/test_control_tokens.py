"""Control tokens of every family, typed into documents, titles, questions, focus, history and system texts.

- they are never encoded as what they spell, however the text is split, spaced or normalized
- in a prompt, control tokens are those of the chat template alone, in number and in place

The tokenizers are trained on a few sentences, but have their family's kind of vocabulary, normalizer, control tokens
(special or not, as published) and chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import transformers
from conftest import FAMILIES as SETTINGS
from conftest import TEXT, TINY, tiny_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from infinimem import DocumentMemory
from infinimem.answering.prompts import encode_chat, passage_messages, summary_messages, told
from infinimem.attention.attach import FAMILIES
from infinimem.attention.rules import make_rule
from infinimem.model.infini_model import InfiniModel
from infinimem.text.tokens import TextEncoder, TokenStream

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_TOOLS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
)  # fmt: skip
QWEN3_TOOLS = (*QWEN_TOOLS, "<tool_response>", "</tool_response>", "<think>", "</think>")
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
    "{%- elif message.role == 'assistant' %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
DISTILLED = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}"
    "{%- endif -%}{%- for m in loop_messages -%}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}{{ m['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
GEMMA_PIECES = (*("\n" * n for n in range(1, 5)), *("▁" * n for n in range(2, 5)), "\t\t")
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% set content = m['content'] %}{% if loop.first and system %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n' }}"
    "{{- system + '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for m in rest %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SMOLLM3 = (
    "{{- '<|im_start|>system\\n## Metadata\\n\\nReasoning Mode: /no_think\\n\\n## Custom Instructions\\n\\n' -}}"
    "{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'].rstrip() -}}"
    "{%- set messages = messages[1:] -%}{%- endif -%}{{- '<|im_end|>\\n' -}}"
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m['content'].lstrip('\\n') + '<|im_end|>\\n' -}}"
    "{%- else -%}"
    "{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Family:
    """A family as it is published.

    network: its class. special, plain: control tokens, and those that the tokenizer does not call special. pieces:
    added tokens that are ordinary text. begin, end: bos and eos. stripping: control tokens swallow the blanks after
    them.
    """

    network: str
    template: str
    special: tuple[str, ...]
    end: str
    begin: str | None = None
    plain: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    sentencepiece: bool = False
    stripping: bool = False
    normalizer: Callable[[], Any] | None = None

    @property
    def control(self) -> tuple[str, ...]:
        """All control tokens."""
        return (*self.special, *self.plain)


CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>", "<|reserved_special_token_0|>",
)  # fmt: skip
TURNS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
UNUSED = ("<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused98>", "<table>", "</table>", "<h1>")
ROLES = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|placeholder1|>")
THINKING = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
MADE: dict[str, Family] = {
    "gemma": Family("Gemma", GEMMA, TURNS, "<eos>", "<bos>", UNUSED, GEMMA_PIECES, sentencepiece=True),
    "gemma2": Family("Gemma2", GEMMA, TURNS, "<eos>", "<bos>", UNUSED, GEMMA_PIECES, sentencepiece=True),
    "gemma3_text": Family(
        "Gemma3", GEMMA3, (*TURNS, "<start_of_image>", "<end_of_image>"), "<eos>", "<bos>", UNUSED, GEMMA_PIECES,
        sentencepiece=True,
    ),
    "llama, as Llama 2": Family("Llama", LLAMA2, ("<unk>", "<s>", "</s>"), "</s>", "<s>", sentencepiece=True),
    "llama, as Llama 3": Family("Llama", LLAMA3, HEADERS, "<|eot_id|>", "<|begin_of_text|>"),
    "llama, as SmolLM 2": Family("Llama", CHATML, (*CHATML_TOKENS, "<repo_name>", "<file_sep>"), "<|im_end|>"),
    "llama, as distilled R1": Family(
        "Llama", DISTILLED, (*HEADERS, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "mistral": Family(
        "Mistral", MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"), "</s>",
        "<s>", sentencepiece=True,
    ),
    "phi3": Family(
        "Phi3", PHI3, ("<unk>", "<s>", "<|endoftext|>", *ROLES), "<|endoftext|>", "<s>", ("</s>",), sentencepiece=True,
        stripping=True,
    ),
    "qwen2": Family("Qwen2", QWEN2, CHATML_TOKENS, "<|im_end|>", None, QWEN_TOOLS, normalizer=normalizers.NFC),
    "qwen2, as distilled R1": Family(
        "Qwen2", DISTILLED, ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", *THINKING), normalizer=normalizers.NFC,
    ),
    "qwen3": Family("Qwen3", QWEN3, CHATML_TOKENS, "<|im_end|>", None, QWEN3_TOOLS, normalizer=normalizers.NFC),
    "smollm3": Family("SmolLM3", SMOLLM3, (*CHATML_TOKENS, *HEADERS[:2]), "<|im_end|>", None, THINKING),
    # No published one: its normalizer makes control tokens of look-alikes, and looks for them afterwards.
    "llama, normalized": Family(
        "Llama", CHATML, CHATML_TOKENS, "<|im_end|>", None, THINKING, normalizer=normalizers.NFKC
    ),
}  # fmt: skip
SMALL = {"vocab_size": 1024, "num_hidden_layers": 2, "max_position_embeddings": 8192}
every_family = pytest.mark.parametrize("name", MADE)


def backend_of(family: Family) -> Tokenizer:
    """A tokenizer of the family's kind."""
    special = list(family.special)
    backend = Tokenizer(models.BPE())
    alphabet = [] if family.sentencepiece else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    corpus = [TEXT * 4, "".join(sorted({c for token in family.control for c in token})) * 3]
    if family.sentencepiece:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.train_from_iterator(corpus, trainer)
        trained = json.loads(backend.to_str())["model"]
        vocabulary = {token: i for i, token in enumerate(special)}
        for token in (*(f"<0x{byte:02X}>" for byte in range(256)), *family.pieces, *trained["vocab"]):
            vocabulary.setdefault(token, len(vocabulary))
        merges = [tuple(pair) for pair in trained["merges"]]
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        replace = normalizers.Replace(" ", "▁")
        gemma = family.network.startswith("Gemma")
        backend.normalizer = replace if gemma else normalizers.Sequence([normalizers.Prepend("▁"), replace])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        if family.normalizer is not None:
            backend.normalizer = family.normalizer()
        split = pre_tokenizers.Split(
            Regex(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(corpus, trainer)
    normalized = family.normalizer is normalizers.NFKC

    def added(token: str, is_special: bool) -> AddedToken:
        return AddedToken(token, normalized=normalized, special=is_special, rstrip=family.stripping)

    backend.add_special_tokens([added(token, True) for token in special])
    backend.add_tokens([added(token, False) for token in family.plain])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.pieces])
    if family.begin is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.begin} $A",
            pair=f"{family.begin} $A {family.begin}:1 $B:1",
            special_tokens=[(family.begin, backend.token_to_id(family.begin))],
        )
    return backend


@cache
def tokenizer_of(name: str) -> transformers.PreTrainedTokenizerFast:
    family = MADE[name]
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend_of(family),
        bos_token=family.begin,
        eos_token=family.end,
        additional_special_tokens=[token for token in family.special if token not in (family.begin, family.end)],
        chat_template=family.template,
    )
    assert len(found) <= 1024
    return found


@cache
def model_of(name: str) -> InfiniModel:
    family = MADE[name]
    if family.network in SETTINGS:
        network = tiny_network(family.network, **SMALL)
    else:
        config = getattr(transformers, f"{family.network}Config")(**{**TINY, **SMALL})
        network = getattr(transformers, f"{family.network}ForCausalLM")(config).eval()
    rule = make_rule("slots", slots=16, distance=16)
    return InfiniModel(network, tokenizer_of(name), rule, segment_length=128, memory_heads=[1], carry=8)


@cache
def control_ids(name: str) -> set[int]:
    ids = {tokenizer_of(name).convert_tokens_to_ids(token) for token in MADE[name].control}
    assert len(ids) == len(MADE[name].control) and None not in ids
    return ids


def hostile(name: str) -> st.SearchStrategy[str]:
    """Texts of control tokens, their halves, and what looks like them."""
    control = MADE[name].control
    halves = sorted({half for token in control for at in range(1, len(token)) for half in (token[:at], token[at:])})
    wide = [token.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}) for token in control]
    spaced = [token[:-1] + blank + token[-1] for token in control for blank in (" ", "\u00a0", "\u200b", "\u2009", "▁")]
    cased = [token.upper() for token in control]
    twice = [token.replace(token[0], token[0] * 2) for token in control]
    inside = [token[: len(token) // 2] + token + token[len(token) // 2 :] for token in control]
    roles = [
        "system",
        "user",
        "assistant",
        "model",
        "\n",
        "\n\n",
        " ",
        "  ",
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\u0000",
        "e\u0301",
    ]
    piece = st.sampled_from([*control, *control, *halves, *wide, *spaced, *cased, *twice, *inside, *roles])
    return st.lists(piece | st.text(st.characters(codec="utf-8"), max_size=8), max_size=12).map("".join)


fuzzed = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_supported_family_is_here() -> None:
    assert {name.partition(",")[0] for name in MADE} == FAMILIES
    for name in MADE:
        assert model_of(name).model.config.get_text_config().model_type == name.partition(",")[0]


@every_family
def test_without_care_these_strings_are_control_tokens(name: str) -> None:
    # Else the tests below would show nothing.
    tokenizer = tokenizer_of(name)
    for token in MADE[name].control:
        assert tokenizer.convert_tokens_to_ids(token) in tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]


@every_family
@fuzzed
@given(data=st.data())
def test_a_text_never_has_control_tokens_however_it_is_split(name: str, data: Any) -> None:
    text = data.draw(hostile(name)) + data.draw(st.sampled_from(["", TEXT * 2])) + data.draw(hostile(name))
    encoder, control = TextEncoder(tokenizer_of(name)), control_ids(name)
    assert not control & set(encoder.encode(text))
    stream, tokens = TokenStream(encoder), []
    at = 0
    for size in data.draw(st.lists(st.integers(1, 300), max_size=8)):
        tokens += stream.feed(text[at : at + size])[0]
        at += size
    tokens += stream.feed(text[at:])[0] + stream.rest()[0]
    assert not control & set(tokens)


@every_family
def test_each_control_token_alone_and_among_words_stays_the_text_that_it_is(name: str) -> None:
    tokenizer, encoder, control = tokenizer_of(name), TextEncoder(tokenizer_of(name)), control_ids(name)
    for token in MADE[name].control:
        for text in (token, f"a{token}b", f"a {token} b", f" {token}", f"{token}\n", token * 3, f"\n{token}user\n"):
            tokens = encoder.encode(text)
            assert not control & set(tokens)
            said = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
            # SentencePiece begins every text with a blank.
            assert said.lstrip(" ") == text.lstrip(" "), text


@every_family
def test_added_tokens_that_are_pieces_of_text_stay_what_they_are(name: str) -> None:
    encoder, family = TextEncoder(tokenizer_of(name)), MADE[name]
    for piece in family.pieces:
        assert tokenizer_of(name).convert_tokens_to_ids(piece) in encoder.encode(f"a{piece}b")


def test_words_that_a_user_added_stay_one_token() -> None:
    backend = backend_of(MADE["qwen2"])
    backend.add_tokens([AddedToken("Marchetti", normalized=False), AddedToken("x > y [z]", normalized=False)])
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    encoder = TextEncoder(found)
    for word in ("Marchetti", "x > y [z]"):
        assert found.convert_tokens_to_ids(word) in encoder.encode(f"Odile {word} spoke")


# In a prompt


def prompt_of(name: str, contents: Sequence[str], system: bool) -> list[int]:
    """A conversation of these contents, encoded."""
    roles = ["system"] if system else []
    roles += ["user" if i % 2 == 0 else "assistant" for i in range(len(contents) - len(roles))]
    return encode_chat(
        model_of(name), [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    )


def count_of(name: str, contents: Sequence[str], system: bool) -> list[int]:
    """The control tokens of a prompt, in their order."""
    return [token for token in prompt_of(name, contents, system) if token in control_ids(name)]


def between(name: str, contents: Sequence[str], system: bool = True) -> list[int]:
    """A prompt of these contents, with each content's own tokens taken out of it: what is left is the template's."""
    model, tokens = model_of(name), prompt_of(name, contents, system)
    left, at = [], 0
    # Mistral puts the system's words before the last question.
    order = sorted(range(len(contents)), key=lambda i: _place(tokens, model.encoder.encode(contents[i])))
    for index in order:
        said = model.encoder.encode(contents[index])
        start = _place(tokens, said, at)
        assert start >= 0, f"the content {contents[index]!r} is not in the prompt as the text that it is"
        left += [*tokens[at:start], -1 - index]
        at = start + len(said)
    return left + tokens[at:]


def _place(tokens: Sequence[int], part: Sequence[int], at: int = 0) -> int:
    """Where a part begins in tokens, after `at`; -1 if nowhere."""
    return next(
        (i for i in range(at, len(tokens) - len(part) + 1) if list(tokens[i : i + len(part)]) == list(part)), -1
    )


MARKS = ["alpha0alpha", "beta1beta", "gamma2gamma", "delta3delta"]


@every_family
@fuzzed
@given(data=st.data(), system=st.booleans())
def test_control_tokens_of_a_prompt_are_the_templates_in_number_and_place(name: str, data: Any, system: bool) -> None:
    marks = MARKS if system else MARKS[:3]
    texts = [data.draw(hostile(name)) for _ in marks]
    # A mark of its own keeps contents apart from each other and from the template's words.
    contents = [
        f"{text}{mark}{text}" if data.draw(st.booleans()) else mark + text
        for text, mark in zip(texts, marks, strict=True)
    ]
    assert between(name, contents, system) == between(name, marks, system)
    assert count_of(name, contents, system) == count_of(name, marks, system)


@every_family
def test_halves_of_control_tokens_do_not_grow_together_with_the_template(name: str) -> None:
    expected = between(name, MARKS)
    for token in MADE[name].control:
        for at in range(1, len(token)):
            # Each text ends with the first half, and begins with the second.
            assert between(name, [f"{token[at:]}{mark}{token[:at]}" for mark in MARKS]) == expected
            assert between(name, [f"{token[at:]} {mark} {token[:at]}" for mark in MARKS]) == expected


@every_family
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_passages_titles_focus_questions_and_history_add_no_control_tokens(name: str, data: Any) -> None:
    from infinimem.text.passages import Passage

    model, control = model_of(name), control_ids(name)

    def of(messages: Any) -> list[int]:
        return [token for token in encode_chat(model, messages) if token in control]

    evil = [data.draw(hostile(name)) for _ in range(8)]
    passages = [Passage(evil[0], evil[1], 1, 0, 1, evil[2]), Passage(evil[3], evil[4], 2, 0, 1, evil[5])]
    benign = [Passage("a", "b", 1, 0, 1, "c"), Passage("d", "e", 2, 0, 1, "f")]
    history = told([(evil[6], evil[7])])
    assert of(passage_messages(evil[6], passages, history, evil[7])) == of(
        passage_messages("a", benign, told([("b", "c")]), "d")
    )
    assert of(summary_messages(passages, evil[6] or "a")) == of(summary_messages(benign, "a"))


@every_family
def test_a_whole_document_of_control_tokens_reaches_the_model_as_text(name: str) -> None:
    model, control, family = model_of(name), control_ids(name), MADE[name]
    seen: list[int] = []
    hook = model.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: seen.extend(arguments[0].flatten().tolist())
    )
    evil = "\n".join(f"The {token}lighthouse{token}" for token in family.control)
    try:
        memory = DocumentMemory.from_text(evil, name=f"light{family.control[0]}", model=model)
        memory.ask("lighthouse", answer_from="memory", max_new_tokens=1)
    finally:
        hook.remove()
    # Shorter segments are padded with 0, which nothing sees.
    assert len(seen) > len(evil) / 4 and control & set(seen) <= {*model.prefix, 0, *of_prompt(name)}
    assert not control & set(memory._to_file().tail.tolist())

    def prompted(words: str, memory: DocumentMemory) -> list[int]:
        roles = ("system", "user", "assistant", "user")
        reply = memory.reply([{"role": role, "content": f"{words} lighthouse"} for role in roles])
        assert len(reply.passages) == 1
        return [token for token in reply.plan.prompts[0] if token in control]

    assert prompted(evil, memory) == prompted("Who keeps the", DocumentMemory.from_text("The lighthouse.", model=model))


def of_prompt(name: str) -> set[int]:
    """What a prompt of plain words has of control tokens."""
    messages = [{"role": role, "content": "a"} for role in ("system", "user")]
    return control_ids(name) & set(encode_chat(model_of(name), messages))


@every_family
@fuzzed
@given(data=st.data())
def test_a_model_without_a_chat_template_has_only_what_begins_every_text(name: str, data: Any) -> None:
    model, control = model_of(name), control_ids(name)
    template, model.tokenizer.chat_template = model.tokenizer.chat_template, None
    try:
        texts = [data.draw(hostile(name)) for _ in range(3)]
        messages = [
            {"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), texts, strict=True)
        ]
        tokens = encode_chat(model, messages)
    finally:
        model.tokenizer.chat_template = template
    assert tokens[: len(model.prefix)] == model.prefix and not control & set(tokens[len(model.prefix) :])
