"""TermWeights: weights of words from the pass that writes the memory, ranking by them, and the head behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from infinimem import DocumentMemory
from infinimem.answering.decoding import SHORT, Decoding
from infinimem.answering.plan import Ensemble, SinglePrompt
from infinimem.answering.prompts import NOT_SAID, encode_chat, instructions_for, passage_messages
from infinimem.errors import (
    AdapterMismatch,
    CheckpointMismatch,
    DamagedAdapter,
    DamagedMemoryFile,
    InvalidSetting,
    NoTermWeights,
)
from infinimem.ingest.checkpoint import Checkpoint
from infinimem.model.infini_model import LazyModel
from infinimem.model.term_head import FILE, SETTINGS, HeadSettings, TermHead, read_head, write_head
from infinimem.search import query
from infinimem.search.query import inputs_at, weigh
from infinimem.search.ranking import (
    BESIDE_IT,
    COMMON,
    NOT_RELATED,
    THE_SAME,
    HybridRanker,
    LearnedRanker,
    LexicalRanker,
    distinct,
)
from infinimem.search.search import ENOUGH, LIGHT, SENTENCES, Search
from infinimem.storage.memory_file import read_memory_file
from infinimem.text.passages import Passage
from infinimem.text.term_weights import STEPS, TermWeights, TokenWeights, from_bytes, to_bytes
from infinimem.text.words import spans, stems

if TYPE_CHECKING:
    from conftest import MakeModel

    from infinimem.answering.plan import Plan
    from infinimem.model.infini_model import InfiniModel

LAYER = 2
TALE = (TEXT + "A schooner from Genoa brought lamp oil, and its captain Odile asked for the harbour dues. ") * 9


def head(seed: int = 0, **changes: Any) -> TermHead:
    """A head that tells words apart, without training."""
    torch.manual_seed(seed)
    made = TermHead(HeadSettings(**{"layer": LAYER, "width": 64, "hidden": 8, **changes}), f"head {seed}")
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.requires_grad_(False).eval()


@pytest.fixture
def model(make_model: MakeModel) -> InfiniModel:
    made = make_model(segment_length=64, carry=16)
    made.use_term_head(head())
    return made


# While reading


def test_term_weights_are_the_heads_weight_of_each_words_last_token(model: InfiniModel) -> None:
    text = TALE[:200]
    memory = DocumentMemory.from_text(text, model=model)
    seen: list[torch.Tensor] = []
    layer = model.model.get_decoder().layers[LAYER].self_attn
    note = lambda _, args, kwargs: seen.append(kwargs["hidden_states"].detach())  # noqa: E731
    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    tokens = model.encoder.encode(text)
    assert len(tokens) <= model.segment_length, "the words of one segment see no memory, so a plain forward is enough"
    model.model(input_ids=torch.tensor([tokens]))
    hook.remove()
    weigher = model.term_head.passage.double()  # type: ignore[union-attr]
    x = seen[0][0].double()
    inner = 0.5 * (z := x @ weigher.inner.weight.T + weigher.inner.bias) * (1 + torch.erf(z / math.sqrt(2)))
    weights = torch.log1p(torch.exp(inner @ weigher.outer.weight.T + weigher.outer.bias))[:, 0]
    weigher.float()
    ends = np.cumsum([len(model.tokenizer.convert_ids_to_tokens(token)) for token in tokens])
    expected = [float(weights[np.searchsorted(ends, end)]) for _, end in spans(text)]
    (given,) = memory.term_weights() or []
    assert np.abs(from_bytes(given) - np.clip(expected, 0, 255 / STEPS)).max() <= 0.51 / STEPS


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(TALE) - 1), max_size=4))
def test_any_split_of_a_text_gives_the_same_term_weights(model: InfiniModel, cuts: list[int]) -> None:
    whole = DocumentMemory.from_text(TALE, model=model).term_weights()
    parts = [TALE[start:end] for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(TALE)], strict=True)]
    parts = [part for part in parts if part.strip()]
    memory = DocumentMemory.from_text(parts[0], model=model)
    for part in parts[1:]:
        memory.append_text(part)
        memory.term_weights()
    if "".join(parts) == TALE:
        assert memory.term_weights() == whole
    assert len(whole or []) == len(DocumentMemory.from_text(TALE, model=model).passages)


def test_a_saved_memory_goes_on_as_if_never_saved(model: InfiniModel, tmp_path: Path) -> None:
    once = DocumentMemory.from_text(TALE, name="one", model=model)
    once.save(tmp_path / "half")
    again = DocumentMemory.load(tmp_path / "half", model=model)
    for memory in (once, again):
        memory.append_text(TALE[::-1], name="two")
        memory.append_text(TALE, name="three")
    assert once.term_weights() == again.term_weights()
    once.save(tmp_path / "once"), again.save(tmp_path / "again")
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_words_of_every_source_get_their_own_weights(model: InfiniModel) -> None:
    memory = DocumentMemory.from_text(TALE, name="one", model=model)
    memory.append_text("Rain fell on the quay.", name="two")
    found = memory.term_weights() or []
    assert [len(given) for given in found] == [len(spans(passage.text)) for passage in memory.passages]
    assert any(found[-1]), "the last source is in the unfinished segment alone"
    record = memory._record
    assert record.term_weights is not None and len(record.term_weights.weighed.ends) < 2 * model.segment_length


def test_merged_memories_keep_their_term_weights(model: InfiniModel, tmp_path: Path) -> None:
    parts = [DocumentMemory.from_text(text, name=text[:5], model=model) for text in (TALE, "The mill is old.", TEXT)]
    merged = DocumentMemory.merge(parts)
    expected = [one for part in parts for one in part.term_weights() or []]
    assert merged.term_weights() == expected
    merged.append_text("A weir was built.", name="weir")
    alone = merged.term_weights() or []
    assert alone[: len(expected)] == expected and any(alone[-1])
    merged.save(tmp_path / "merged")
    assert DocumentMemory.load(tmp_path / "merged", model=model).term_weights() == alone


def test_the_memory_itself_does_not_depend_on_the_head(make_model: MakeModel, model: InfiniModel) -> None:
    bare = make_model(segment_length=64, carry=16)
    assert bare.identity() == model.identity()
    with_head, without = (DocumentMemory.from_text(TALE, model=one) for one in (model, bare))
    for index, state in with_head._open().complete().states().items():
        other = without._open().complete().states()[index]
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def test_a_memory_without_passages_has_no_term_weights(model: InfiniModel) -> None:
    memory = DocumentMemory.from_text(TALE, model=model, passages=False)
    assert memory.term_weights() is None and memory._record.term_weights is None


def test_a_very_long_question_costs_no_more_than_a_segment(model: InfiniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(model: InfiniModel, layer: int, tokens: list[int]) -> Any:
        seen.append(len(tokens))
        return inputs_at(model, layer, tokens)

    monkeypatch.setattr(query, "inputs_at", counted)
    short, long = weigh(model, "Who is Odile?"), weigh(model, "Who is Odile? " + TALE * 50)
    assert len(long) == len(spans("Who is Odile? " + TALE * 50)) and len(short) == 3
    assert seen[0] < seen[1] <= model.segment_length and all(long[:5]) and not any(long[-1000:])
    memory = DocumentMemory.from_text(TALE, model=model)
    assert memory.retrieve("Odile " + TALE * 50, 1)


# With another head, or none


def test_without_a_head_hybrid_is_lexical_and_memory_says_so(make_model: MakeModel) -> None:
    memory = DocumentMemory.from_text(TALE, model=make_model(segment_length=64))
    assert memory.retrieve("Odile") == memory.retrieve("Odile", rank_by="lexical") != []
    with pytest.raises(NoTermWeights, match="rank_by='lexical'"):
        memory.retrieve("Odile", rank_by="learned")
    with pytest.raises(InvalidSetting, match="no term head"):
        weigh(memory.model, "Odile")


def test_term_weights_of_another_head_are_not_used(model: InfiniModel, tmp_path: Path) -> None:
    memory = DocumentMemory.from_text(TALE, model=model)
    memory.save(tmp_path / "m")
    model.use_term_head(head(seed=1))
    other = DocumentMemory.load(tmp_path / "m", model=model)
    assert other.term_weights() is None
    assert other.retrieve("Odile") == other.retrieve("Odile", rank_by="lexical")
    other.append_text("More.", name="more")
    other.save(tmp_path / "n")
    assert read_memory_file(tmp_path / "n").term_weights is None


def test_reading_does_not_go_on_with_another_head(model: InfiniModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TALE)
    DocumentMemory.ingest(tmp_path / "a.txt", model=model).save(tmp_path / "part")
    model.use_term_head(head(seed=1))
    with pytest.raises(CheckpointMismatch, match="another term head"):
        DocumentMemory.ingest(tmp_path / "a.txt", model=model, checkpoint=tmp_path / "part", resume=True)
    assert Checkpoint(tmp_path / "part").path.exists()


def test_lexical_search_loads_no_model(model: InfiniModel, tmp_path: Path) -> None:
    DocumentMemory.from_text(TALE, model=model).save(tmp_path / "m")
    memory = DocumentMemory.load(tmp_path / "m")
    assert memory.retrieve("Odile", rank_by="lexical") and memory._ingestion is None


@pytest.mark.parametrize("changes", [{"width": 32}, {"layer": 4}])
def test_a_head_for_another_model_is_refused(make_model: MakeModel, changes: dict[str, int]) -> None:
    with pytest.raises(AdapterMismatch, match=r"layer \d, width \d+"):
        make_model().use_term_head(head(**changes))


# Ranking

WORDS = ("ship", "ships", "fog", "bell", "Bell", "rope", "ropes", "tide", "salt")
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(sentences, min_size=1, max_size=6), query=sentences, seed=st.integers(0, 9))
def test_scores_are_weight_times_rarity_times_weight(texts: list[list[str]], query: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    passages = [Passage(" ".join(words), "s", 1, 0, 1) for words in texts]
    of_passages = [to_bytes(generator.uniform(0, 4, len(words))) for words in texts]
    weights = generator.uniform(0, 3, len(query))
    ranker = LearnedRanker(passages, of_passages, lambda text: list(weights))
    expected, covered, highest = np.zeros(len(texts)), np.zeros(len(texts)), 0.0
    for stem, weight in zip(stems(" ".join(query)), weights, strict=True):
        heaviest = [
            max((given[i] / STEPS for i, s in enumerate(stems(p.text)) if s == stem), default=None)
            for p, given in zip(passages, of_passages, strict=True)
        ]
        having = sum(one is not None for one in heaviest)
        rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        highest += weight * max(rarity, COMMON)
        expected += [weight * rarity * (one or 0) for one in heaviest]
        covered += [weight * max(rarity, COMMON) * (one or 0) for one in heaviest]
    found = ranker.scores(" ".join(query))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert ranker.coverage(" ".join(query)) == pytest.approx(covered.max() / highest if highest else 0, rel=1e-4)
    ranks = ranker.rank(" ".join(query), len(texts))
    assert [score for _, score in ranks] == sorted((s for s in map(float, found) if s > 0), reverse=True)


def turned(angles: dict[str, float]) -> Any:
    """Vectors of words that stand at these angles; other words have none."""

    def vectors(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        places = [place for place, word in enumerate(words) if word in angles]
        found = [[math.cos(angles[words[place]]), math.sin(angles[words[place]])] for place in places]
        return np.array(places, np.int64), np.array(found, np.float32).reshape(-1, 2)

    return vectors


def test_related_words_count_as_far_as_they_are_related() -> None:
    texts = ["fog fell", "bell", "rope rope bell", "mist", "salt", "salt"]
    passages = [Passage(text, "s", 1, 0, 1) for text in texts]
    weights = [bytes([2 * STEPS] * len(text.split())) for text in texts]
    same, half, apart = (math.acos(x) for x in (THE_SAME, (THE_SAME + NOT_RELATED) / 2, NOT_RELATED))
    vectors = turned({"haze": 0.0, "fog": same, "mist": -half, "bell": apart, "salt": math.pi})
    ranker = LearnedRanker(passages, weights, lambda text: [3.0] * len(text.split()), vectors)
    # Not in the document: a related word counts as if it stood there, by its own rarity.
    once = math.log(1 + 5.5 / 1.5)
    assert ranker.scores("haze") == pytest.approx([3 * once * 2, 0, 0, 3 * once * 2 / 2, 0, 0], rel=1e-4)
    # Of several in one passage the one that fits best; a word of the document comes before those related to it.
    between = math.acos(math.cos(same + half))
    share = min(1, max(0, (math.cos(between) - NOT_RELATED) / (THE_SAME - NOT_RELATED)))
    assert ranker.scores("fog")[3] == pytest.approx(3 * once * 2 * share * BESIDE_IT, rel=1e-4)
    assert ranker.scores("fog")[0] == pytest.approx(3 * once * 2, rel=1e-4)


def test_a_related_word_is_no_rarer_than_the_one_that_is_asked_for() -> None:
    texts = ["salt", "salt", "salt", "brine", "rope"]
    passages = [Passage(text, "s", 1, 0, 1) for text in texts]
    ranker = LearnedRanker(passages, [bytes([STEPS])] * 5, lambda text: [1.0], turned({"salt": 0.0, "brine": 0.0}))
    common, rare = (math.log(1 + (5 - having + 0.5) / (having + 0.5)) for having in (3, 1))
    assert ranker.scores("salt") == pytest.approx([common] * 3 + [common * BESIDE_IT, 0], rel=1e-4)
    assert ranker.scores("brine") == pytest.approx([common * BESIDE_IT] * 3 + [rare, 0], rel=1e-4)


def test_related_words_find_sentences_but_do_not_count_as_covered() -> None:
    text = "Rain fell. The fog came. Night fell."
    passage = Passage(text, "s", 1, 0, len(text))
    weights = [bytes([STEPS] * len(spans(text)))]
    related, alone = (LearnedRanker([passage], weights, alike, v) for v in (turned({"mist": 0.0, "fog": 0.3}), None))
    best = related.sentences("mist", [(0, 0.0)])[0]
    assert text[slice(*best.span)] == "The fog came." and best.score > 0
    assert alone.sentences("mist", [(0, 0.0)])[0].score == 0
    assert related.coverage("mist") == alone.coverage("mist") == 0


def test_words_whose_small_letters_are_more_than_their_capitals_are_ranked(embedded: InfiniModel) -> None:
    # In small letters this one has a mark that is no letter, in the middle.
    memory = DocumentMemory.from_text("In İIzmir the fog fell. " * 60, model=embedded)
    assert memory.retrieve("Mist over İIzmir?", k=1, rank_by="learned")[0].score > 0


def test_a_word_that_is_said_twice_counts_twice() -> None:
    texts = ["fog fell", "bell rang"]
    passages = [Passage(text, "s", 1, 0, 1) for text in texts]
    ranker = LearnedRanker(passages, [bytes([STEPS] * 2)] * 2, alike, turned({"mist": 0.0, "fog": 0.1}))
    for asked in ("fog", "mist"):
        once, twice = ranker.scores(asked).copy(), ranker.scores(f"{asked} {asked.upper()}")
        assert once[0] > 0 and twice == pytest.approx(2 * once)


def test_a_question_in_other_words_finds_its_passage(embedded: InfiniModel) -> None:
    filler = [
        "The bell rang at noon.",
        "Bread was baked on Friday.",
        "Sheep graze behind the mill.",
        "Paint dries slowly.",
    ]
    text = "\n\n".join((f"{one} " * 25).strip() for one in (*filler[:2], "Mice ate the wood of the door.", *filler[2:]))
    memory = DocumentMemory.from_text(text, model=embedded)
    best = memory.retrieve("Which rodents damaged the timber?", k=1, rank_by="learned")
    assert "Mice" in best[0].text


def test_ranking_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    LexicalRanker([Passage("fog bell", "s", 1, 0, 8)]).rank("fog", 1)
    assert not caplog.records


def test_hybrid_adds_a_share_of_bm25() -> None:
    passages = [Passage(text, "s", 1, 0, 1) for text in ("fog bell fog", "bell rope", "tide")]
    memory = LearnedRanker(passages, [bytes([9, 9, 9]), bytes([90, 9]), bytes([1])], lambda text: [1.0] * 2)
    lexical = LexicalRanker(passages)
    fused = dict(HybridRanker(memory, lexical, 0.5).rank("fog bell", 3))
    both = memory.scores("fog bell") + 0.5 * lexical.scores("fog bell")
    assert fused == {index: pytest.approx(score) for index, score in enumerate(both) if score > 0}


def test_of_passages_with_the_same_words_one_is_found() -> None:
    passages = [Passage(text, "s", 1, 0, 1) for text in ("The  fog.", "A bell.", "the fog.", "Fog")]
    assert distinct(passages, [(2, 3.0), (0, 3.0), (3, 2.0), (1, 1.0)], 3) == [(2, 3.0), (3, 2.0), (1, 1.0)]


def test_several_memories_are_ranked_as_one(model: InfiniModel) -> None:
    parts = [DocumentMemory.from_text(text, name=name, model=model) for name, text in (("a", TALE), ("b", "Old mill."))]
    search = Search(parts)
    ((index, _),) = search.rank("mill", 1, "learned")
    assert search.passages[index].source == "b" and search.memory_of(index) is parts[1]
    parts[1].append_text(" It burned.", name="b")
    assert not search.is_current and Search(parts).is_current
    with pytest.raises(IndexError):
        search.memory_of(len(search.passages))


@pytest.mark.parametrize("settings_", [{"k": 0}, {"rank_by": "magic"}])
def test_impossible_searches_are_refused(model: InfiniModel, settings_: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        DocumentMemory.from_text(TALE, model=model).retrieve("Odile", **settings_)


# The head's file


def test_a_head_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = head(least=0.25, lexical=0.7)
    write_head(tmp_path, made)
    found = read_head(tmp_path)
    assert found is not None and found.settings == made.settings and len(found.sha256) == 64
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    assert read_head(tmp_path / "nowhere") is None


def test_a_head_is_known_by_what_term_weights_depend_on(tmp_path: Path) -> None:
    def fingerprint(made: TermHead) -> str:
        write_head(tmp_path, made)
        found = read_head(tmp_path)
        return found.sha256 if found is not None else ""

    made = head()
    before = fingerprint(made)
    made.settings = replace(made.settings, least=0.5, lexical=0.9)
    assert fingerprint(made) == before
    made.settings = replace(made.settings, layer=made.settings.layer + 1)
    assert fingerprint(made) != before
    made.settings = replace(made.settings, layer=made.settings.layer - 1)
    made.passage.inner.bias[0] += 1
    assert fingerprint(made) != before


@pytest.mark.parametrize("damage", ["cut", "nan", "missing", "settings", "shape", "no settings", "huge"])
def test_a_damaged_head_is_refused(tmp_path: Path, damage: str) -> None:
    write_head(tmp_path, head())
    path = tmp_path / FILE
    tensors = load_file(path)
    plain = {"layer": LAYER, "width": 64, "hidden": 8, "lexical": 0.3, "least": 0.0}
    if damage == "nan":
        tensors["passage.inner.bias"][0] = float("nan")
    elif damage == "missing":
        del tensors["passage.inner.bias"]
    elif damage == "shape":
        tensors["passage.inner.bias"] = torch.zeros(3)
    elif damage == "settings":
        plain["extra"] = 1
    elif damage == "huge":
        plain["hidden"] = 1 << 40
    save_file(tensors, path, None if damage == "no settings" else {SETTINGS: json.dumps(plain)})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedAdapter, match="restore a copy"):
        read_head(tmp_path)


# The memory file


def test_term_weights_that_do_not_fit_the_passages_are_refused(model: InfiniModel, tmp_path: Path) -> None:
    memory = DocumentMemory.from_text(TALE, model=model)
    memory.save(tmp_path / "m")
    file = read_memory_file(tmp_path / "m")
    assert file.term_weights is not None
    for change in ({"weights": file.term_weights[:-1]}, {"weights": np.append(file.term_weights, np.uint8(1))}):
        spoiled = read_memory_file(tmp_path / "m")
        spoiled.term_weights = change["weights"]
        spoiled.write(tmp_path / "spoiled")
        with pytest.raises(DamagedMemoryFile, match="words"):
            DocumentMemory.load(tmp_path / "spoiled")
    for field, value in (("done", 99), ("ends", [5, 4]), ("starts", [1]), ("weights", [1])):
        spoiled = read_memory_file(tmp_path / "m")
        spoiled.reading["addresses"][field] = value
        spoiled.write(tmp_path / "spoiled")
        with pytest.raises(DamagedMemoryFile):
            DocumentMemory.load(tmp_path / "spoiled")
    spoiled = read_memory_file(tmp_path / "m")
    spoiled.reading["addresses"]["sizes"][0] += 1
    spoiled.reading["addresses"]["sizes"][1] -= 1
    spoiled.write(tmp_path / "spoiled")
    with pytest.raises(DamagedMemoryFile, match="has 135 term weights"):
        DocumentMemory.load(tmp_path / "spoiled", model=model).retrieve("Odile")
    for field, kind in (("weights", [256]), ("ends", [-1]), ("tail", ["1"]), ("head", 3)):
        spoiled = read_memory_file(tmp_path / "m")
        spoiled.reading["addresses"][field] = kind
        spoiled.write(tmp_path / "spoiled")
        with pytest.raises(DamagedMemoryFile, match="reading"):
            read_memory_file(tmp_path / "spoiled")
    spoiled = read_memory_file(tmp_path / "m")
    spoiled.term_weights = None
    spoiled.write(tmp_path / "spoiled")
    with pytest.raises(DamagedMemoryFile, match="one half"):
        read_memory_file(tmp_path / "spoiled")


def test_words_without_their_tokens_weigh_nothing() -> None:
    weighed = TokenWeights([3, 8], bytearray([5, 6]))
    assert weighed.of_words(0, "the fog came") == bytes([5, 6, 0])
    waiting = TermWeights("h", [], [0], TokenWeights([3], bytearray([5])))
    waiting.settle([Passage("the fog", "s", 1, 0, 7)])
    assert waiting.done == [] and waiting.starts == [0]


@pytest.mark.parametrize("text", ["", "İstanbul ŞEHİR", "naïve — 7½ ﬁne", "中文 字", "__init__ don't"])
def test_every_word_has_one_stem(text: str) -> None:
    assert len(stems(text)) == len(spans(text))


# The sentence that fits best


def alike(query: str) -> list[float]:
    """Weights that make all words of a query worth the same."""
    return [1.0] * len(spans(query))


def ranker_of(*texts: str) -> LearnedRanker:
    passages = [Passage(text, "s", 1, 0, len(text)) for text in texts]
    return LearnedRanker(passages, [bytes([STEPS] * len(spans(text))) for text in texts], alike)


def test_the_sentence_that_fits_best_comes_first_and_knows_its_neighbours() -> None:
    texts = ["Fog came. It was grey.", "Rain fell. Snow followed. Odile steered the ship. She sang. Night fell."]
    found = ranker_of(*texts).sentences("Who steered the ship?", [(0, 2.0), (1, 1.0)])
    best = found[0]
    assert best.passage == 1 and texts[1][slice(*best.span)] == "Odile steered the ship."
    assert texts[1][slice(*best.around)] == "Snow followed. Odile steered the ship. She sang."
    assert sorted(texts[one.passage][slice(*one.span)] for one in found) == sorted(
        f"{part.rstrip('.')}." for text in texts for part in text.split(". ")
    )


def test_words_weigh_in_a_sentence_what_they_weigh_in_their_place() -> None:
    text = "The bell rang twice. Fog came. Rain fell. Wind rose. The bell weighs ninety kilograms."
    passage = Passage(text, "s", 1, 0, len(text))
    for heavy, said in ((1, "The bell rang twice. Fog came."), (11, "Wind rose. The bell weighs ninety kilograms.")):
        weights = bytes([STEPS if place == heavy else 1 for place in range(len(spans(text)))])
        best = LearnedRanker([passage], [weights], alike).sentences("the bell", [(0, 0.0)])[0]
        assert text[slice(*best.around)] == said


def test_a_query_gets_its_own_scores_though_another_one_comes_between() -> None:
    ranker = ranker_of("Odile came.", "Fog came.")
    expected = ranker.scores("Odile").copy()

    class Interrupted(str):
        """A query that is compared while another thread asks."""

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            ranker._last = None
            ranker.scores("fog")
            return str(self) == str(other)

    assert np.array_equal(ranker.scores(Interrupted("Odile")), expected)


def test_of_sentences_that_fit_alike_the_one_of_the_better_passage_is_taken() -> None:
    ranker = ranker_of("Odile came. So it was.", "Odile went. So it was.", "Nothing.")
    assert ranker.sentences("Odile", [(1, 3.0), (0, 1.0)])[0].passage == 1
    assert ranker.sentences("Odile", [(0, 1.0), (1, 3.0)])[0].passage == 1
    assert [one.span for one in ranker.sentences("nowhere", [(2, 0.0)])] == [(0, len("Nothing."))]


def with_answer_adapter(model: InfiniModel, make_model: MakeModel) -> InfiniModel:
    model._answering = LazyModel(lambda: make_model(segment_length=64, carry=16))
    return model


def shown(model: InfiniModel, question: str, passages: Sequence[Passage]) -> list[int]:
    instructions = instructions_for(model).passages[SHORT]
    return encode_chat(model, passage_messages(question, passages, instructions=instructions))


def asked_of(memory: DocumentMemory, question: str, **settings: Any) -> Plan:
    return memory.reply([{"role": "user", "content": question}], k=3, **settings).plan


def test_a_model_with_an_answer_adapter_is_shown_the_best_passage_and_sentences_and_others_all_passages(
    model: InfiniModel, make_model: MakeModel
) -> None:
    told = " ".join(f"On day {n} the captain Odile asked for oil. Nobody saw letter {n}." for n in range(24))
    memory = DocumentMemory.from_text(told, model=model)
    question = "What did the captain Odile ask for?"
    found = memory.retrieve(question, 3)
    whole = asked_of(memory, question)
    assert whole.content == SinglePrompt(shown(model, question, found))
    with_answer_adapter(model, make_model)
    read = asked_of(memory, question)
    search = memory._search()
    parts = search.candidates(question, search.rank(question, 3))
    assert read.passages == found
    assert isinstance(read.content, Ensemble)
    expected = [(shown(model, question, [part]), weight) for part, weight in parts]
    assert read.content.prompts == expected
    ranker = search._rankers["learned"]
    assert isinstance(ranker, LearnedRanker)
    sentences = ranker.sentences(question, search.rank(question, 3))[:SENTENCES]
    spans = [(one.passage, *one.around) for one in sentences] + [(one.passage, *one.span) for one in sentences]
    texts = [found[0].text, *(memory.passages[index].text[start:end] for index, start, end in spans)]
    assert [part.text for part, _ in parts] == list(dict.fromkeys(texts)) and len(set(texts)) == 1 + 2 * SENTENCES
    assert "Odile" in memory.passages[sentences[0].passage].text[slice(*sentences[0].around)]
    for part, _ in parts:
        (holder, *_) = [p for p in memory.passages if p.start <= part.start and part.end <= p.end]
        assert holder.text[part.start - holder.start : part.end - holder.start] == part.text


def test_a_passage_of_one_sentence_is_read_once(model: InfiniModel, make_model: MakeModel) -> None:
    memory = DocumentMemory.from_text("Odile asked for the harbour dues", model=with_answer_adapter(model, make_model))
    plan = asked_of(memory, "What did Odile ask for?")
    assert isinstance(plan.content, Ensemble) and len(plan.prompts) == len(plan.passages) == 1


def test_a_sample_is_drawn_from_all_passages(model: InfiniModel, make_model: MakeModel) -> None:
    memory = DocumentMemory.from_text(TALE * 3, model=with_answer_adapter(model, make_model))
    plan = asked_of(memory, "Who is Odile?", decoding=Decoding(8, temperature=0.7))
    assert plan.content == SinglePrompt(shown(model, "Who is Odile?", plan.passages))
    assert len(plan.passages) == 3


def test_ensembles_are_asked_in_every_way_of_asking(model: InfiniModel, make_model: MakeModel) -> None:
    memory = DocumentMemory.from_text(TALE * 3, model=with_answer_adapter(model, make_model))
    questions = ["Who is Odile?", "What came from Genoa?"]
    said = [memory.ask(question, max_new_tokens=6).text for question in questions]
    assert [one.text for one in memory.ask_many(questions, max_new_tokens=6)] == said
    assert ["".join(memory.stream(question, max_new_tokens=6)).strip() for question in questions] == said


def test_a_search_within_a_part_of_the_document_sees_nothing_else(model: InfiniModel) -> None:
    memory = DocumentMemory.from_text(TALE * 3, model=model)
    part, search = memory.passages[2], memory._search()
    for question in ("Who is Odile?", "quarantine?"):
        assert [index for index, _ in search.within(question, [(part.start, part.end)], 4)] == [2]
    for parts, k in (([], 4), ([(10**6, 10**6 + 5)], 4), ([(part.start, part.end)], 0)):
        with pytest.raises(InvalidSetting):
            search.within("Who is Odile?", parts, k)


def test_parts_of_next_to_no_weight_and_parts_shown_already_are_left_out(model: InfiniModel) -> None:
    memory = DocumentMemory.from_text(TALE * 3, model=model)
    search = memory._search()
    question = "What did the captain Odile ask for?"
    parts = search.candidates(question, search.rank(question, 3))
    heaviest = max(weight for _, weight in parts)
    assert all(weight >= heaviest - LIGHT for _, weight in parts)
    assert len({part.text for part, _ in parts}) == len(parts)
    assert search.candidates("What?", []) == []


def test_without_term_weights_candidate_prompts_show_every_passage(make_model: MakeModel) -> None:
    model = with_answer_adapter(make_model(segment_length=64, carry=16), make_model)
    memory = DocumentMemory.from_text(TALE * 3, model=model)
    found = memory.retrieve("harbour dues of Odile", 3)
    plan = asked_of(memory, "harbour dues of Odile")
    expected = {tuple(shown(model, "harbour dues of Odile", [passage])) for passage in found}
    assert isinstance(plan.content, Ensemble) and plan.passages == found
    assert {tuple(tokens) for tokens in plan.prompts} <= expected and plan.prompts


# What is not in the document


def refusing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> InfiniModel:
    """A model whose head finds no question covered, and that must not be asked."""
    model = make_model(segment_length=256)
    model.use_term_head(head(least=99.0))

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was asked")

    monkeypatch.setattr("infinimem.answering.rows.generate", fail)
    return model


def test_what_the_document_has_too_little_of_is_refused_without_the_model(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = DocumentMemory.from_text(TALE * 4, model=refusing(make_model, monkeypatch))
    assert len(memory.passages) >= ENOUGH
    answer = memory.ask("Who is Odile?", k=2)
    assert answer.text == NOT_SAID and not answer.found and answer.passages == memory.retrieve("Who is Odile?", 2)
    assert "".join(memory.stream("Who is Odile?")) == NOT_SAID
    assert [one.text for one in memory.ask_many(["Who is Odile?", "What of Genoa?"])] == [NOT_SAID] * 2
    reply = memory.reply([{"role": "user", "content": "Who is Odile?"}])
    assert ("".join(reply), reply.finish, reply.tokens) == (NOT_SAID, "stop", 0)


def test_conversations_short_documents_and_the_memory_alone_are_never_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = refusing(make_model, monkeypatch)
    memory, short = (DocumentMemory.from_text(text, model=model) for text in (TALE * 4, TALE[:1500]))
    assert len(short.passages) < ENOUGH
    with pytest.raises(AssertionError, match="was asked"):
        memory.ask("And who is she?", history=[("Who is Odile?", "A captain.")])
    with pytest.raises(AssertionError, match="was asked"):
        memory.ask("Who is Odile?", answer_from="memory")
    with pytest.raises(AssertionError, match="was asked"):
        short.ask("Who is Odile?")


def test_what_all_of_a_text_is_about_covers_a_question_as_well() -> None:
    texts = [f"The harbour office, note {i}." for i in range(6)]
    ranker = ranker_of(*texts)
    assert ranker.coverage("the harbour office") == pytest.approx(1)
    assert 0 < ranker.coverage("the harbour office in Genoa") < 0.7
    assert ranker.coverage("Genoa") == 0


def test_a_covered_question_is_asked(make_model: MakeModel) -> None:
    model = make_model(segment_length=256)
    model.use_term_head(head(least=0.0))
    memory = DocumentMemory.from_text(TALE * 4, model=model)
    assert memory.ask("Who is Odile?", max_new_tokens=4).text != NOT_SAID
