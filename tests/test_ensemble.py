"""Several candidates of a question: the answer is what an independent computation of the mixture says it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from conftest import FAMILIES, MakeModel, random_tokens

from infinimem.answering import ensemble as candidates_module
from infinimem.answering import rows as decode
from infinimem.answering.decoding import Decoding
from infinimem.answering.ensemble import LENGTH, SURE, CandidatePrompt, Said, answers
from infinimem.answering.plan import Ensemble, Plan, SinglePrompt
from infinimem.answering.stream import Continuation, answer_texts
from infinimem.attention.batch import join
from infinimem.errors import AnswerTimeout, InvalidSetting
from infinimem.model.infini_model import InfiniModel

COUNT = 6  # tokens of an answer at most


def candidates_of(*lengths: int, common: int = 0, weights: tuple[float, ...] = ()) -> list[CandidatePrompt]:
    """Prompts of random tokens, of which the first ones are the same."""
    start = random_tokens(1, common, seed=99)[0].tolist() if common else []
    return [
        CandidatePrompt([*start, *random_tokens(1, length, seed=length)[0].tolist()], weight)
        for length, weight in itertools.zip_longest(lengths, weights, fillvalue=0.0)
    ]


@torch.no_grad()
def logits_after(model: InfiniModel, tokens: list[int]) -> torch.Tensor:
    return model.model(torch.tensor([tokens])).logits[0].double()


def greedy(model: InfiniModel, prompt: list[int]) -> tuple[int, ...]:
    said: list[int] = []
    while len(said) < COUNT and not set(said) & model.end_tokens:
        said.append(int(logits_after(model, [*prompt, *said])[-1].argmax()))
    return tuple(said)


def mixed(model: InfiniModel, candidates: list[CandidatePrompt], candidate: Sequence[int]) -> float:
    """The sum over candidates of weight times probability, the latter by its length, without any batch, in float64."""
    total = 0.0
    for prompt, weight in candidates:
        found = logits_after(model, [*prompt, *candidate]).log_softmax(-1)
        log = sum(float(found[len(prompt) - 1 + i, t]) for i, t in enumerate(candidate))
        total += math.exp(weight + SURE * log / len(candidate) ** LENGTH)
    return total


def expected(model: InfiniModel, candidates: list[CandidatePrompt]) -> tuple[int, ...]:
    """The answer of one of the candidates that has most of it, and says something if any does."""
    said = [greedy(model, prompt) for prompt, _ in candidates]
    some = [one for one in said if model.tokenizer.decode(one, skip_special_tokens=True).strip()]
    return max(some or said, key=lambda one: mixed(model, candidates, one))


@pytest.mark.parametrize("common", [0, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_the_one_that_all_candidates_together_find_most_probable(
    family: str, common: int, make_model: MakeModel
) -> None:
    model = make_model(family)
    for weights in ((), (0.0, 1.0, 3.0, 0.5), (4.0, 0.0, 0.0, 0.0)):
        candidates = candidates_of(11, 4, 19, 5, common=common, weights=weights)
        (said,) = answers(model, [candidates], max_new_tokens=COUNT)
        assert any(tuple(said.tokens) == greedy(model, prompt) for prompt, _ in candidates) and not said.ended
        # Some families are so sure of themselves that all are alike.
        best = mixed(model, candidates, expected(model, candidates))
        assert mixed(model, candidates, said.tokens) == pytest.approx(best, rel=1e-3)


def test_a_candidate_prompt_that_finds_its_answer_likely_prevails_over_one_that_hardly_does(
    make_model: MakeModel,
) -> None:
    model = make_model()
    first, second = candidates_of(6, 9)
    for heavy in (first, second):
        chosen = [CandidatePrompt(one.tokens, 50.0 if one is heavy else 0.0) for one in (first, second)]
        (said,) = answers(model, [chosen], max_new_tokens=COUNT)
        assert tuple(said.tokens) == greedy(model, heavy.tokens)


def test_a_short_answer_does_not_win_by_being_short(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    first, second = candidates_of(6, 9)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", greedy(model, first.tokens)[1])
    short, long = greedy(model, first.tokens), greedy(model, second.tokens)
    assert len(short) == 2 and len(long) == COUNT

    def alone(candidate: CandidatePrompt, answer: Sequence[int]) -> float:
        found = logits_after(model, [*candidate.tokens, *answer]).log_softmax(-1)
        return sum(float(found[len(candidate.tokens) - 1 + i, token]) for i, token in enumerate(answer))

    # Weights with which the longer answer is the less probable one, and the better one for its length.
    plain = alone(first, short) - alone(second, long)
    fair = SURE * (alone(first, short) / 2**LENGTH - alone(second, long) / COUNT**LENGTH)
    assert plain > fair + 1
    candidates = [CandidatePrompt(first.tokens, 0.0), CandidatePrompt(second.tokens, (plain + fair) / 2)]
    monkeypatch.setattr(candidates_module, "HOPELESS", 1e9)
    for length, sure, best in ((LENGTH, SURE, long), (0.0, 1.0, short)):
        monkeypatch.setattr(candidates_module, "LENGTH", length)
        monkeypatch.setattr(candidates_module, "SURE", sure)
        (said,) = answers(model, [candidates], max_new_tokens=COUNT)
        assert said.tokens == [token for token in best if token not in model.end_tokens]


def test_questions_side_by_side_get_the_answers_of_one_at_a_time(make_model: MakeModel) -> None:
    model = make_model()
    questions = [
        candidates_of(5, 12, 30, common=3),
        candidates_of(8),
        candidates_of(7, 21),
        *[candidates_of(6, 10)] * 3,
    ]
    together = list(answers(model, questions, max_new_tokens=COUNT))
    assert together == [next(answers(model, [one], max_new_tokens=COUNT)) for one in questions]


def test_one_candidate_prompt_is_answered_as_its_prompt_is(make_model: MakeModel) -> None:
    model = make_model()
    (candidate,) = candidates_of(9)
    plain = "".join(Continuation(model, SinglePrompt(candidate.tokens), None, Decoding(12)))
    ensemble = Ensemble([candidate])
    assert "".join(Continuation(model, ensemble, None, Decoding(12))) == plain
    assert answer_texts(model, [Plan(ensemble, [])] * 2, lambda: None, Decoding(12)) == [plain.strip()] * 2


def test_an_answer_ends_where_the_model_ends_it(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    candidates = candidates_of(6, 9)
    end = greedy(model, candidates[0].tokens)[2]
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", end)
    (said,) = answers(model, [candidates], max_new_tokens=COUNT)
    full = expected(model, candidates)
    assert [*said.tokens, *([end] if said.ended else [])] == list(full) and said.ended == (full[-1] == end)
    alone = Continuation(model, Ensemble(candidates[:1]), None, Decoding(COUNT))
    assert alone.finish is None and "".join(alone) and (alone.finish, alone.tokens) == ("stop", 2)


def test_what_says_that_there_is_no_answer_is_taken_only_if_all_say_so(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    candidates = candidates_of(6, 9, weights=(50.0, 0.0))
    said = [greedy(model, candidate.tokens) for candidate in candidates]
    texts = model.tokenizer.batch_decode([list(one) for one in said])
    assert texts[0] != texts[1]
    monkeypatch.setattr(candidates_module, "is_answer", lambda text: text != texts[0])
    assert next(answers(model, [candidates], max_new_tokens=COUNT)).tokens == list(said[1])
    monkeypatch.setattr(candidates_module, "is_answer", lambda text: False)
    assert next(answers(model, [candidates], max_new_tokens=COUNT)).tokens == list(said[0])


def forwards(model: InfiniModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tokens that go through the model from now on."""
    shapes: list[tuple[int, ...]] = []
    forward = model.model.forward

    def counted(*arguments: object, **settings: torch.Tensor) -> object:
        shapes.append(tuple(settings["input_ids"].shape))
        return forward(*arguments, **settings)

    monkeypatch.setattr(model.model, "forward", counted)
    return shapes


def test_a_common_beginning_is_read_once_and_short_prompts_are_not_padded_to_long_ones(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    shapes = forwards(model, monkeypatch)
    list(answers(model, [candidates_of(5, 6, 12, 60, common=8)], max_new_tokens=2))
    assert shapes[:4] == [(1, 8), (3, 12), (1, 60), (4, 1)]


def test_a_hopeless_answer_is_not_written_to_its_end(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    first, second = candidates_of(6, 9)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", greedy(model, first.tokens)[1])
    shapes = forwards(model, monkeypatch)
    candidates = [CandidatePrompt(first.tokens, 0.0), CandidatePrompt(second.tokens, -1000.0)]
    (said,) = answers(model, [candidates], max_new_tokens=40)
    assert said.ended and len(said.tokens) == 1
    # Both prompts, and one token more.
    assert shapes[-1] == (2, 1) and len(shapes) <= 3


def test_no_so_many_tokens_in_a_row_come_twice(make_model: MakeModel) -> None:
    model = make_model()
    (said,) = answers(model, [candidates_of(6)], max_new_tokens=30, no_repeat=2)
    pairs = list(itertools.pairwise(said.tokens))
    assert len(set(pairs)) == len(pairs) == 29


def test_an_answer_that_takes_too_long_is_given_up(make_model: MakeModel) -> None:
    with pytest.raises(AnswerTimeout):
        answer_texts(
            make_model(), [Plan(Ensemble(candidates_of(6, 9)), [])], lambda: None, Decoding(COUNT, timeout=0.0)
        )


def test_a_blank_answer_is_taken_only_if_all_are(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    first, second = candidates_of(6, 9, weights=(50.0, 0.0))
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", greedy(model, first.tokens)[0])
    assert next(answers(model, [[first]], max_new_tokens=COUNT)) == Said([], True)
    said = next(answers(model, [[first, second]], max_new_tokens=COUNT))
    assert said.tokens == [t for t in greedy(model, second.tokens) if t not in model.end_tokens] != []


def test_many_long_candidates_are_scored_as_few_are(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    candidates = candidates_of(6, 9, 14, common=5)
    (expected,) = answers(model, [candidates], max_new_tokens=COUNT)
    monkeypatch.setattr(decode, "SCORED_TOKENS", 1)
    assert list(answers(model, [candidates], max_new_tokens=COUNT)) == [expected]


def test_a_stop_text_ends_the_writing(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    (candidate,) = candidates_of(9)
    whole = "".join(Continuation(model, Ensemble([candidate]), None, Decoding(40)))
    stop = whole[3:6]
    shapes = forwards(model, monkeypatch)
    said = Continuation(model, Ensemble([candidate]), None, Decoding(40, stop=[stop]))
    assert "".join(said) == whole[: whole.index(stop)] and said.finish == "stop" and len(shapes) < 20


def test_a_stopped_answer_computes_no_further_token(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    shapes = forwards(model, monkeypatch)
    said = Continuation(model, Ensemble(candidates_of(6, 9)), None, Decoding(200))
    forward = model.model.forward

    def stopping(*arguments: object, **settings: torch.Tensor) -> object:
        if len(shapes) == 5:
            said.stop()
        return forward(*arguments, **settings)

    monkeypatch.setattr(model.model, "forward", stopping)
    assert "".join(said) == "" and len(shapes) == 6


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0}]
)
def test_impossible_decoding_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting):
        Decoding(**wrong)  # type: ignore[arg-type]


def test_segments_that_go_on_a_past_are_not_put_side_by_side(make_model: MakeModel) -> None:
    model = make_model()
    begun, read = model.new_cache(), model.new_cache()
    model.read_tokens(random_tokens(1, 40)[0].tolist(), read)
    with pytest.raises(InvalidSetting, match="nothing was read"):
        join(begun, read)
