"""Decoding several views of an answer: as if each were computed for itself."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, MakeModel, random_tokens

from infinimem.attention import InfiniCache
from infinimem.model import InfiniModel


def agreed_one_by_one(
    model: InfiniModel, prompts: list[list[int]], cache: InfiniCache | None, tokens: int
) -> list[list[float]]:
    """The log probabilities on which all prompts of an answer agree, and its greedy tokens, without any batch."""
    said: list[int] = []
    for _ in range(tokens):
        means = []
        for prompt in prompts:
            window = model.new_cache() if cache is None else cache.clone()
            ids = torch.tensor([[*prompt, *said]])
            means.append(model.model(input_ids=ids, past_key_values=window).logits[0, -1].float().log_softmax(-1))
        said.append(int(torch.stack(means).mean(0).argmax()))
    return [said]


@torch.no_grad()
@pytest.mark.parametrize("read", [0, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_agree_give_the_tokens_of_computing_each_for_itself(
    family: str, read: int, make_model: MakeModel
) -> None:
    model = make_model(family, carry=6)
    cache = model.new_cache()
    model.read_tokens(random_tokens(1, read, seed=3)[0].tolist(), cache)
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (13, 5)]
    expected = agreed_one_by_one(model, prompts, cache if read else None, 8)
    steps = model.generate(prompts[:1], cache, beside=prompts[1:], max_new_tokens=8, stop_at_eos=False)
    assert [[token for (token,) in steps]] == expected


@torch.no_grad()
def test_several_answers_of_two_prompts_each_are_those_of_one_at_a_time(make_model: MakeModel) -> None:
    model = make_model(carry=6)
    first, second = ([random_tokens(1, n, seed=n)[0].tolist() for n in lengths] for lengths in ((4, 19), (11, 3)))
    together = list(model.generate(first, beside=second, max_new_tokens=6, stop_at_eos=False))
    for answer in range(2):
        alone = model.generate([first[answer]], beside=[second[answer]], max_new_tokens=6, stop_at_eos=False)
        assert [step[answer] for step in together] == [token for (token,) in alone]


@torch.no_grad()
def test_two_prompts_take_one_forward_a_token_after_the_first(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_model(), []
    forward = model.model.forward

    def counted(*arguments: object, **settings: torch.Tensor) -> object:
        rows.append(tuple(settings["input_ids"].shape))
        return forward(*arguments, **settings)

    monkeypatch.setattr(model.model, "forward", counted)
    list(model.generate([[5, 6, 7]], beside=[[8, 9]], max_new_tokens=3, stop_at_eos=False))
    assert rows == [(1, 3), (1, 2), (2, 1), (2, 1)]
