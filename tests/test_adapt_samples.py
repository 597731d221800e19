"""Training of an adapter: its configuration, its data, and the samples that are made of them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, MakeModel
from training import ALL, PAPER, QA, SINGLE, STORY, TALE, table, write_rows, write_training_data

from infinimem.adapt.books import Books
from infinimem.adapt.config import OBJECTIVES
from infinimem.adapt.config_file import parse_config, read_config
from infinimem.adapt.documents import question_documents, summary_documents, training_data
from infinimem.adapt.objectives import Mixture
from infinimem.adapt.samples import Bench, Sample
from infinimem.answering.prompts import NOT_SAID, encode_chat, memory_messages, told
from infinimem.datasets.facts import FAMILIES, invent
from infinimem.datasets.stories import read_stories
from infinimem.errors import InvalidConfig, TrainingDataError
from infinimem.model.infini_model import InfiniModel


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("training"))


# Configuration


def test_a_configuration_has_the_values_of_its_file_and_defaults_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'output = "out"\n[lora]\nrank = 8\nlr = 1\n[[stages]]\nsegments = 2\nsteps = 10\n[[stages]]\nsegments = 4\n'
        'steps = 5\n[[objectives]]\nkind = "lm"\nbooks = "b.jsonl"\nweight = 2\n'
    )
    config = read_config(tmp_path / "a.toml")
    assert (config.lora.rank, config.lora.lr, config.lora.alpha, config.gates.lr) == (8, 1.0, 32.0, 0.01)
    assert config.steps == 15 and [config.stage(step) for step in (0, 9, 10, 14)] == [0, 0, 1, 1]
    assert config.path("b.jsonl") == tmp_path / "b.jsonl" and config.data_files() == ["b.jsonl"]
    assert type(config.objectives[0]) is OBJECTIVES["lm"] and config.objectives[0].weight == 2.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora__rnk": 3}, "lora.rnk; did you mean rank"),
        ({"colour": 3}, "no setting colour"),
        ({"lora__rank": 0}, "lora.rank is 0, but must be at least 1"),
        ({"lora__rank": 1.5}, "lora.rank is 1.5, but must be a whole number"),
        ({"lora__rank": True}, "lora.rank is True"),
        ({"lora__lr": 0.0}, "lora.lr is 0.0, but must be more than 0"),
        ({"lora__lr": float("nan")}, "lora.lr is nan, but must be finite"),
        ({"lora__targets": "q_proj"}, "lora.targets is 'q_proj', but must be a list"),
        ({"lora__targets": []}, "lora.targets is empty"),
        ({"lora__targets": [1]}, r"lora.targets\[0\] is 1, but must be a text"),
        ({"train__checkpointing": 1}, "train.checkpointing is 1, but must be true or false"),
        ({"model__rule": "magic"}, "model.rule is 'magic'; choose one of slots"),
        ({"model__memory_heads": {"1": 3}}, "model.memory_heads.1 is 3"),
        ({"model__memory_heads": {"1": [0]}, "model__memory_layers": [1]}, "give one"),
        ({"model": 3}, "model is 3, but must be a table"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"output": None}, "output is None"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"segments": 2}]}, r"stages\[0\].steps is missing"),
        ({"stages": [{"segments": 1, "steps": 1}]}, r"stages\[0\].segments is 1"),
        ({"objectives": [{"kind": "magic"}]}, r"objectives\[0\].kind is 'magic'; choose one of lm"),
        ({"objectives": [{"kind": "lm"}]}, r"objectives\[0\].books is missing"),
        ({"objectives": [{"kind": "lm", "books": "b", "weight": 0}]}, r"objectives\[0\].weight is 0"),
        ({"objectives": [{"kind": "lm", "books": "b", "words": 3}]}, r"no setting objectives\[0\].words"),
        ({"objectives": [{"kind": "needles", "books": "b", "most": 551}]}, "most is 551, but must be at most 550"),
        ({"objectives": [{"kind": "qa", "data": ["b"], "reading": 1.2}]}, "reading is 1.2, but must be at most 1"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfig, match=says) as caught:
        parse_config(table(**changes), Path())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("output = ")
    for path, says in ((tmp_path / "a.toml", "not TOML"), (tmp_path / "none", "no configuration"), (tmp_path, "read")):
        with pytest.raises(InvalidConfig, match=says):
            read_config(path)


def test_the_example_configuration_is_valid() -> None:
    config = read_config(Path(__file__).parents[1] / "examples" / "adapt.toml")
    assert [stage.segments for stage in config.stages] == [2, 4, 8, 16]
    assert {objective.kind for objective in config.objectives} == set(OBJECTIVES)


# Data


def test_every_layout_of_questions_points_at_the_right_paragraph(data: Path) -> None:
    for name, expected in (("squad", [1]), ("tales", [0, 1]), ("papers", [1])):
        (document,) = question_documents(data / f"{name}.jsonl.gz")
        (question,) = document.questions
        assert list(question.paragraphs) == expected
        right = [document.passages[i].text for i in document.right(question)]
        assert right and all(document.paragraphs[expected[0]][:9] in text for text in right)
    assert len(question_documents(data / "singles.jsonl.gz")) == 12


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "is empty"),
        ([[1]], "line 1 of .* no JSON object"),
        ([{"paragraphs": ["a"]}], "'qas'"),
        ([{"paragraphs": "a", "qas": []}], "'paragraphs'"),
        ([{"paragraphs": [1], "qas": [{}]}], r"'paragraphs' \(list of str\)"),
        ([QA, {**QA, "qas": [{"question": "Who?", "answers": []}]}], "line 2 of .* 'answers'"),
        ([{**QA, "qas": [{"question": "Who?", "answers": ["x"], "paragraph": 7}]}], "not there: 'Who"),
        ([{**PAPER, "qas": [{"question": "Who?", "answers": ["x"], "answer_start": [999]}]}], "not there"),
        ([QA, {**QA, "paragraphs": [TEXT, " \n\t", TEXT]}], "line 2 of .* blank paragraph: 'Who"),
        ([{**SINGLE, "passage": "  "}], "line 1 of .* blank paragraph: 'when"),
    ],
)
def test_questions_in_no_known_layout_are_refused(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(TrainingDataError, match=says):
        question_documents(write_rows(tmp_path / "q.jsonl.gz", *rows))


def books_of(path: Path) -> Books:
    with training_data():
        return Books(path)


def test_data_files_that_cannot_be_read_are_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    (tmp_path / "cut.jsonl.gz").write_bytes((data / "books.jsonl.gz").read_bytes()[:200])
    (tmp_path / "empty.jsonl").write_text("\n")
    content = bytearray((data / "books.jsonl.gz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "flipped.jsonl.gz").write_bytes(content)
    for name, says in (
        ("none", "no file"),
        ("broken", "no JSON"),
        ("cut", "restore"),
        ("flipped", "'"),
        ("empty", "is empty"),
    ):
        with pytest.raises(TrainingDataError, match=says):
            books_of(next(tmp_path.glob(f"{name}*"), tmp_path / name))
    with pytest.raises(TrainingDataError, match="'text'"):
        books_of(data / "squad.jsonl.gz")
    with pytest.raises(TrainingDataError, match="tasks qa1, qa2"), training_data():
        read_stories(data / "babi.jsonl.gz", ("qa1", "qa3"))
    late = {**STORY, "qas": [{"question": "Who?", "answer": "x", "after": 9}]}
    with pytest.raises(TrainingDataError, match="after 9 of 3"), training_data():
        read_stories(write_rows(tmp_path / "late.jsonl.gz", late))


def test_prose_has_as_many_tokens_as_asked_for_also_beyond_a_books_end(make_model: MakeModel, data: Path) -> None:
    bench, books = Bench(make_model()), Books(data / "books.jsonl.gz")
    for count in (1, 100, 30_000):
        tokens = books.tokens(bench, random.Random(count), count)
        assert len(tokens) == count
    text = bench.decode(books.tokens(bench, random.Random(2), 200))
    assert any(text in whole for whole in books.texts)


# Samples


def mixture(model: InfiniModel, data: Path, *objectives: dict[str, Any], segments: int = 3, **changes: Any) -> Mixture:
    settings = {"objectives": list(objectives), "stages": [{"segments": segments, "steps": 10}], **changes}
    config = parse_config(table(**settings), data)
    return Mixture(config, Bench(model, config.train.cuts))


def asked(sample: Sample, bench: Bench) -> tuple[str, str, str]:
    """The document, the prompt and the answer of a sample, decoded; the loss is on the answer alone."""
    *document, last = sample.segments
    assert last.prompt and not any(any(segment.mask) or segment.prompt for segment in document)
    start = last.mask.index(True)
    assert all(last.mask[start:])
    text = "".join(bench.decode(segment.tokens) for segment in document)
    return text, bench.decode(last.tokens[:start]), bench.decode(last.tokens[start:])


def test_lm_has_loss_from_the_second_segment_on_and_never_at_a_first_token(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=64)
    sample = mixture(model, data, ALL[0]).sample(0, 0)
    first, *rest = sample.segments
    assert len(rest) == 2 and not any(first.mask) and not any(segment.prompt for segment in sample.segments)
    assert all(segment.mask == [False] + [True] * (len(segment.tokens) - 1) for segment in rest)
    tokens = [token for segment in sample.segments for token in segment.tokens]
    assert [segment.tokens for segment in sample.segments] == list(model.segmenter.split(tokens))[:3]
    fixed = mixture(model, data, ALL[0], train__cuts="fixed").sample(0, 0)
    assert [len(segment.tokens) for segment in fixed.segments] == [64, 64, 64]


@pytest.mark.parametrize("raw", [0.0, 1.0])
def test_repeat_asks_for_what_the_document_says(make_model: MakeModel, data: Path, raw: float) -> None:
    model = make_model(segment_length=160)
    drawn = mixture(model, data, {**ALL[1], "raw": raw})
    for step in range(5):
        document, prompt, answer = asked(drawn.sample(step, 0), Bench(model))
        answer = answer.removesuffix("<|im_end|>").strip()
        said = " ".join(document.split())
        assert answer and said.count(answer) >= 1
        cue = prompt if raw else prompt.split('"')[1]
        assert f"{cue} {answer}" in said


@pytest.mark.parametrize("raw", [0.0, 1.0])
def test_needles_stand_whole_in_one_segment_and_are_asked_for(make_model: MakeModel, data: Path, raw: float) -> None:
    model = make_model(segment_length=200)
    bench = Bench(model)
    drawn = mixture(model, data, {**ALL[2], "most": 3, "raw": raw})
    for step in range(6):
        sample = drawn.sample(step, 0)
        document, prompt, answer = asked(sample, bench)
        assert len(sample.segments) == 4
        wanted = answer.removesuffix("<|im_end|>").strip()
        parts = [bench.decode(segment.tokens) for segment in sample.segments[:-1]]
        assert sum(wanted in part for part in parts) >= 1 and wanted in document
        assert prompt.startswith("<|im_start|>system") is (raw == 0.0)
        if raw == 0.0:
            question = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            assert sample.segments[-1].tokens[: sample.segments[-1].mask.index(True)] == encode_chat(
                model, memory_messages(question)
            )
            assert answer.endswith("<|im_end|>")


def test_facts_of_a_document_cannot_be_confused() -> None:
    for seed in range(200):
        facts = invent(random.Random(seed), 4)
        assert len({fact.cue for fact in facts}) == len({fact.question for fact in facts}) == 4
        assert all(fact.answer in fact.statement and fact.answer not in fact.question for fact in facts)
    assert all("{value}" in statement for _, statements, _, _ in FAMILIES for statement in statements)


def test_hidden_pieces_keep_their_order_and_the_lengths_of_the_segments(make_model: MakeModel) -> None:
    bench = Bench(make_model(segment_length=64))
    parts = bench.cut(bench.encode(TEXT * 2))
    pieces = [[400 + n] * 9 for n in range(7)]
    hidden = bench.hide(parts, pieces, random.Random(0))
    assert hidden is not None and [len(part) for part in hidden] == [len(part) for part in parts]
    assert [t for part in hidden for t in part if t in range(400, 407)] == [t for piece in pieces for t in piece]
    assert bench.hide(parts, [[1] * 65], random.Random(0)) is None
    full = bench.hide([[7] * 20] * 3, [[n] * 10 for n in range(100, 106)], random.Random(0))
    assert full == [[100] * 10 + [101] * 10, [102] * 10 + [103] * 10, [104] * 10 + [105] * 10]


def test_babi_tells_the_facts_in_order_up_to_the_question(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for step in range(4):
        document, prompt, answer = asked(mixture(model, data, ALL[4]).sample(step, 0), Bench(model))
        assert document.index("Mary went home.") < document.index("John went out.") and "Mary went out" not in document
        assert "Where is Mary?" in prompt and answer == "home<|im_end|>"


def test_questions_to_the_memory_come_after_a_document_with_the_answer(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for file, answer in (("squad", "Odile"), ("singles", "day "), ("papers", "old"), ("tales", "It went to sleep")):
        drawn = mixture(model, data, {"kind": "qa", "data": [f"{file}.jsonl.gz"], "reading": 0.0})
        for step in range(4):
            sample = drawn.sample(step, 0)
            document, prompt, said = asked(sample, Bench(model))
            assert sample.kind == "qa.memory" and said.startswith(answer) and "Excerpts" not in prompt
            assert file == "tales" or said.removesuffix("<|im_end|>") in document
            assert 1 <= len(sample.segments) - 1 <= 3


@pytest.mark.parametrize("beside", [False, True])
def test_questions_that_fit_their_stage_are_drawn_instead_of_those_that_do_not(
    make_model: MakeModel, tmp_path: Path, beside: bool
) -> None:
    model = make_model(segment_length=64)
    long = {**QA, "paragraphs": ["Odile left. " + TEXT * 9], "qas": [{**QA["qas"][0], "paragraph": 0}]}
    write_rows(tmp_path / "mixed.jsonl.gz", long, SINGLE)
    kind = {"kind": "qa", "data": ["mixed.jsonl.gz"], "reading": float(beside), "beside": float(beside)}
    drawn = mixture(model, tmp_path, kind, segments=2)
    for step in range(12):
        document, _, said = asked(drawn.sample(step, 0), Bench(model))
        assert said.startswith("Tuesday") and "Tuesday" in document


@pytest.mark.parametrize("segments", [2, 3])
def test_of_a_paragraph_longer_than_the_stage_the_segments_around_the_answer_are_read(
    make_model: MakeModel, tmp_path: Path, segments: int
) -> None:
    model = make_model(segment_length=64)
    for name, paragraphs, about in (
        ("middle", [TEXT * 4 + "The captain was Odile Marchetti. " + TEXT * 4], [0]),
        ("end", [TEXT * 4 + "The captain was Odile Marchetti."], [0]),
        ("span", ["Far before.", *[TEXT] * 9, "The captain was Odile Marchetti.", "After."], [0, 10]),
    ):
        row = {**TALE, "paragraphs": paragraphs}
        row["qas"] = [{"question": "Who was the captain?", "answers": ["Odile Marchetti"], "paragraphs": about}]
        write_rows(tmp_path / f"{name}.jsonl.gz", row)
        kind = {"kind": "qa", "data": [f"{name}.jsonl.gz"], "reading": 0.0}
        drawn, again = (mixture(model, tmp_path, kind, segments=segments) for _ in range(2))
        for step in range(4):
            sample = drawn.sample(step, 0)
            assert "Odile Marchetti" in asked(sample, Bench(model))[0] and len(sample.segments) - 1 == segments
        assert again.sample(3, 0) == sample


def test_questions_for_reading_show_the_right_passage_and_no_memory(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    for file in ("squad", "singles", "papers"):
        drawn = mixture(model, data, {"kind": "qa", "data": [f"{file}.jsonl.gz"], "reading": 1.0})
        shown = []
        for step in range(8):
            sample = drawn.sample(step, 0)
            document, prompt, said = asked(sample, Bench(model))
            assert sample.kind == "qa.reading" and document == "" and said.removesuffix("<|im_end|>") in prompt
            shown.append(prompt.count("(page 1)"))
        assert max(shown) <= 4 and (max(shown) > 1 or file == "papers")
    both = mixture(model, data, {"kind": "qa", "data": ["squad.jsonl.gz"], "reading": 1.0, "beside": 1.0}).sample(0, 0)
    assert len(both.segments) > 1 and "Odile" in asked(both, Bench(model))[0]


def test_a_window_is_a_sentence_with_the_answer_in_whole_words_between_its_neighbours(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(segment_length=160)
    text = "Rain fell in 1950. Fog came. The crew had 5 men. Odile led them. Night fell. The end came in November."
    wanted = {
        "How many men?": ("5", "Fog came. The crew had 5 men. Odile led them."),
        "Did she leave?": ("No", text),
        "Who led?": ("Odile", "The crew had 5 men. Odile led them. Night fell."),
    }
    for number, (question, (answer, expected)) in enumerate(wanted.items()):
        qas = [{"question": question, "answers": [answer], "paragraph": 0}]
        qas += [{"question": "When did rain fall?", "answers": ["1950"], "paragraph": 0}]
        write_rows(tmp_path / f"{number}.jsonl.gz", {"title": "Crew", "paragraphs": [text], "qas": qas[:1]})
        write_rows(tmp_path / f"{number}-more.jsonl.gz", {"title": "Crew", "paragraphs": [text], "qas": qas})
        kind = {"kind": "qa", "data": [f"{number}.jsonl.gz"], "reading": 1.0, "window": 1.0, "turns": 2}
        for step in range(3):
            _, prompt, said = asked(mixture(model, tmp_path, kind).sample(step, 0), Bench(model))
            assert f"(page 1) {expected}\n\nQuestion: {question}" in prompt and said == f"{answer}<|im_end|>"
        # A further question is asked only where the window answers it too.
        more = mixture(model, tmp_path, {**kind, "data": [f"{number}-more.jsonl.gz"]})
        for step in range(6):
            (segment,) = more.sample(step, 0).segments
            excerpt, rest = Bench(model).decode(segment.tokens).split("(page 1) ")[1].split("\n\nQuestion", 1)
            assert "1950" in excerpt or "1950" not in rest


def test_a_window_without_an_answer_is_any_sentence(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=160)
    rows = [
        {"title": f"T{i}", "paragraphs": [f"One {i}. Two {i}. Three {i}. Four {i}. Five {i}."],
         "qas": [{"question": f"What of {i}?", "answers": [f"Two {i}"], "paragraph": 0}]}
        for i in range(3)
    ]  # fmt: skip
    write_rows(tmp_path / "t.jsonl.gz", *rows)
    kind = {"kind": "qa", "data": ["t.jsonl.gz"], "reading": 1.0, "window": 1.0, "absent": 1.0, "elsewhere": 1.0}
    drawn = mixture(model, tmp_path, kind)
    for step in range(6):
        _, prompt, said = asked(drawn.sample(step, 0), Bench(model))
        excerpt = prompt.split("(page 1) ")[1].split("\n\nQuestion")[0]
        assert said.startswith("The document does not say") and 2 <= excerpt.count(".") <= 3


def test_a_window_can_be_its_sentence_alone(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=160)
    text = "Rain fell in 1950. Fog came. Odile led the crew. Night fell."
    qas = [{"question": "Who led?", "answers": ["Odile"], "paragraph": 0}]
    write_rows(tmp_path / "t.jsonl.gz", {"title": "Crew", "paragraphs": [text], "qas": qas})
    kind = {"kind": "qa", "data": ["t.jsonl.gz"], "reading": 1.0, "window": 1.0}
    found = set()
    for alone in (0.0, 0.5, 1.0):
        drawn = mixture(model, tmp_path, {**kind, "alone": alone})
        excerpts = {asked(drawn.sample(step, 0), Bench(model))[1].split("(page 1) ")[1] for step in range(12)}
        found |= {(alone, excerpt.split("\n\nQuestion")[0]) for excerpt in excerpts}
    wide, single = "Fog came. Odile led the crew. Night fell.", "Odile led the crew."
    assert found == {(0.0, wide), (0.5, wide), (0.5, single), (1.0, single)}


def test_of_sentences_that_stand_together_the_others_do_not_say_it(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=160)
    text = "Rain fell in 1950. Fog came. It was thick. Odile led the crew. Night fell."
    qas = [{"question": "Who led?", "answers": ["Odile"], "paragraph": 0}]
    write_rows(tmp_path / "t.jsonl.gz", {"title": "Crew", "paragraphs": [text], "qas": qas})
    kind = {"kind": "qa", "data": ["t.jsonl.gz"], "reading": 1.0, "window": 1.0, "absent": 1.0, "elsewhere": 0.0}
    found = set()
    for step in range(24):
        _, prompt, said = asked(mixture(model, tmp_path, kind).sample(step, 0), Bench(model))
        found.add(prompt.split("(page 1) ")[1].split("\n\nQuestion")[0])
        assert said.startswith("The document does not say")
    assert found == {
        "Rain fell in 1950. Fog came.",
        "Rain fell in 1950. Fog came. It was thick.",
        "It was thick.",
        "Night fell.",
    }


def test_passages_without_the_answer_are_answered_with_saying_so(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=160)
    names = ["Odile", "Bruno", "Carla", "Dario"]
    told = [f"The captain of ship {i} was {name}. {TEXT * 2}" for i, name in enumerate(names)]
    qas = [{"question": f"Captain of {i}?", "answers": [name], "paragraph": i} for i, name in enumerate(names)]
    write_rows(tmp_path / "one.jsonl.gz", {"title": "Ships", "paragraphs": told, "qas": qas})
    singles = [{**qa, "title": "Ship", "passage": text} for qa, text in zip(qas, told, strict=True)]
    write_rows(tmp_path / "many.jsonl.gz", *singles)
    crews = [f"The captains are {', '.join(names)}. {TEXT * 2}"] * 4
    write_rows(tmp_path / "all.jsonl.gz", {"title": "Ships", "paragraphs": crews, "qas": qas})
    for file in ("one", "many", "all"):
        for absent in (0.0, 0.5, 1.0):
            kind = {"kind": "qa", "data": [f"{file}.jsonl.gz"], "reading": 1.0, "absent": absent}
            drawn, silent = mixture(model, tmp_path, kind), []
            for step in range(16):
                _, prompt, said = asked(drawn.sample(step, 0), Bench(model))
                shown, _, question = prompt.partition("Excerpts from")[2].partition("Question:")
                (number,) = re.findall(r"Captain of (\d)", question)
                silent.append(said == f"{NOT_SAID}<|im_end|>")
                assert (names[int(number)] in shown) is not silent[-1] and "(page 1)" in shown
            # Where every passage holds the answer, and there is no other document, the answer stays.
            assert any(silent) is (absent > 0 and file != "all")
            assert all(silent) is (absent == 1 and file != "all")


def test_absent_answers_are_looked_for_elsewhere_as_often_as_asked(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(segment_length=160)
    names = ["Odile", "Bruno"]
    rows = []
    for place in ("Brest", "Malmo"):
        told = [f"In {place} the captain of ship {i} was {name}. {TEXT * 2}" for i, name in enumerate(names)]
        asking = [f"Captain of {i} in {place}?" for i in range(2)]
        qas = [{"question": asking[i], "answers": [names[i]], "paragraph": i} for i in range(2)]
        rows.append({"title": place, "paragraphs": told, "qas": qas})
    write_rows(tmp_path / "both.jsonl.gz", *rows)
    for share in (0.0, 0.5, 1.0):
        kind = {"kind": "qa", "data": ["both.jsonl.gz"], "reading": 1.0, "absent": 1.0, "elsewhere": share}
        drawn, other = mixture(model, tmp_path, kind), []
        for step in range(24):
            _, prompt, _ = asked(drawn.sample(step, 0), Bench(model))
            shown, _, question = prompt.partition("Excerpts from")[2].rpartition("Question:")
            other.append(("Brest" in question) is not ("Brest" in shown))
        assert any(other) is (share > 0) and all(other) is (share == 1)


@pytest.mark.parametrize("reading", [0.0, 1.0])
def test_turns_ask_about_what_is_shown_or_read_in_one_conversation(
    make_model: MakeModel, tmp_path: Path, reading: float
) -> None:
    model = make_model(segment_length=200)
    names = ["Odile", "Bruno", "Carla", "Dario", "Elena", "Fabio"]
    paragraphs = [f"The captain of ship {i} was {name}. {TEXT * 2}" for i, name in enumerate(names)]
    qas = [{"question": f"Captain of {i}?", "answers": [name], "paragraph": i} for i, name in enumerate(names)]
    write_rows(tmp_path / "many.jsonl.gz", {"title": "Ships", "paragraphs": paragraphs, "qas": qas})
    bench, lengths = Bench(model), set()
    for turns in (1, 3):
        kind = {"kind": "qa", "data": ["many.jsonl.gz"], "reading": reading, "passages": 2, "turns": turns}
        for step in range(12):
            *document, last = mixture(model, tmp_path, kind, segments=3).sample(step, 0).segments
            start = last.mask.index(True)
            known = bench.decode([token for part in document for token in part.tokens] + last.tokens[:start])
            said = bench.decode([t for t, on in zip(last.tokens, last.mask, strict=True) if on]).split("<|im_end|>")
            assert said.pop() == "" and len(set(said)) == len(said) <= turns
            assert all(f"was {name}." in known for name in said)
            questions = re.findall(r"Captain of (\d)\?", bench.decode(last.tokens))
            assert [names[int(number)] for number in questions] == said
            history = [(f"Captain of {names.index(name)}?", name) for name in said[:-1]]
            if reading == 0.0:
                prompt = encode_chat(model, memory_messages(f"Captain of {names.index(said[-1])}?", told(history)))
                assert last.tokens[: len(prompt)] == prompt
            lengths.add((turns, len(said)))
    assert max(size for turns, size in lengths if turns == 1) == 1 and max(lengths)[1] > 1


def test_a_conversation_ends_where_the_context_does(make_model: MakeModel) -> None:
    model = make_model()
    more = [(f"Question {i}?", "yes") for i in range(5)]
    messages = memory_messages("First question?")
    whole = Bench(model).ask("qa", [], messages, "no", more).segments[-1]
    model.model.config.max_position_embeddings = len(whole.tokens) - 1
    cut = Bench(model).ask("qa", [], messages, "no", more).segments[-1]
    assert whole.tokens[: len(cut.tokens)] == cut.tokens and cut.mask == whole.mask[: len(cut.mask)]
    assert Bench(model).decode(cut.tokens).count("yes<|im_end|>") == 4


def test_summaries_are_asked_as_summarize_does_with_their_focus(make_model: MakeModel, data: Path) -> None:
    model = make_model()
    cases = {
        "plots": [("Summarize the document.", "Ships sail."), ("Summarize the document.", "Ships go."),
                  ("about this: Who was the captain of the Heron?", "Odile led the Heron.")],
        "meetings": [("Summarize the document.", "A boat will be bought."),
                     ("about this: What did Bob say about the boat?", "He wants one.")],
    }  # fmt: skip
    for file, expected in cases.items():
        drawn = mixture(model, data, {"kind": "summary", "data": [f"{file}.jsonl.gz"], "passages": 2})
        seen = set()
        for step in range(40):
            sample = drawn.sample(step, 0)
            document, prompt, said = asked(sample, Bench(model))
            assert sample.kind == "summary" and document == "" and len(sample.segments) == 1
            assert 1 <= prompt.count("(page 1)") <= 2
            (case,) = (c for c in expected if c[1] == said.removesuffix("<|im_end|>") and c[0] in prompt)
            seen.add(case)
            if "captain" in case[0]:
                assert "was Odile" in prompt
        assert seen == set(expected)


def test_summaries_leave_out_passages_that_the_context_has_no_room_for(make_model: MakeModel, data: Path) -> None:
    model = make_model()
    drawn = mixture(model, data, {"kind": "summary", "data": ["plots.jsonl.gz"], "passages": 6})
    longest = max(drawn.sample(step, 0).tokens for step in range(20))
    model.model.config.max_position_embeddings = longest - 1
    assert max(drawn.sample(step, 0).tokens for step in range(20)) < longest


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "is empty"),
        ([{"questions": []}], "'document'"),
        ([{"document": "a"}], "'general'"),
        ([{"document": "a", "questions": [{"question": "q", "summaries": [1]}]}], r"'summaries' \(list of str\)"),
        ([{"document": " ", "questions": [{"question": "q", "summaries": ["a"]}]}], "blank document"),
        ([{"document": "a", "general": [{"summary": " "}]}], "blank document or summary"),
    ],
)
def test_summaries_in_no_known_layout_are_refused(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(TrainingDataError, match=says):
        summary_documents(write_rows(tmp_path / "s.jsonl.gz", *rows))


def test_samples_depend_on_seed_step_and_index_alone(make_model: MakeModel, data: Path) -> None:
    model = make_model(segment_length=160)
    one, two, other = (mixture(model, data, *ALL, seed=seed) for seed in (3, 3, 4))
    places = [(step, index) for step in range(3) for index in range(4)]
    drawn = [one.sample(*place) for place in places]
    assert [two.sample(*place) for place in reversed(places)] == drawn[::-1]
    assert [other.sample(*place) for place in places] != drawn
    assert len({str(sample) for sample in drawn}) == len(places)
    kinds = {one.sample(step, 0).kind for step in range(60)}
    assert kinds == {"lm", "repeat", "needles", "qa.memory", "qa.reading", "summary", "babi"}


def test_weights_decide_how_often_an_objective_comes(make_model: MakeModel, data: Path) -> None:
    drawn = mixture(make_model(segment_length=64), data, {**ALL[0], "weight": 9.0}, ALL[4])
    kinds = [drawn.sample(step, 0).kind for step in range(200)]
    assert 0.84 < kinds.count("lm") / len(kinds) < 0.96


def test_training_and_measuring_share_no_invented_names() -> None:
    from infinimem.datasets import facts, needles

    trained = {*facts.FIRST, *facts.LAST, *facts.PLACES, *facts.WORDS}
    measured = {*needles.NAMES, *(word for values in needles.WORDS.values() for word in values)}
    assert {one.casefold() for one in trained} & {one.casefold() for one in measured} == set()
