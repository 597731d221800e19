"""Finding base models: the embedded default, directories, and clear refusals."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import read, tiny_network

from infinimem.answering.rows import generate
from infinimem.errors import (
    DefaultModelMissing,
    ModelCacheDamaged,
    ModelNotFound,
    NoNetwork,
    NoRotaryEmbedding,
    NotACausalLM,
)
from infinimem.model import download, pretrained
from infinimem.model.cached import model_directory
from infinimem.model.catalogue import named_model
from infinimem.model.infini_model import InfiniModel
from infinimem.model.pretrained import load_base


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "hub_reachable", lambda: False)
    monkeypatch.setattr(download, "hub_reachable", lambda: False)


DEFAULT = named_model("smollm2-135m")


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: None) -> None:
    """A machine with an empty cache, without the package of the default model, and without any network."""

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setenv("INFINIMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


def test_the_embedded_model_is_llama_with_its_chat_template(embedded: InfiniModel) -> None:
    assert (embedded.name, embedded.model.config.model_type) == ("smollm2-135m", "llama")
    assert "<|im_start|>" in embedded.tokenizer.chat_template
    assert (embedded.num_layers, embedded.context_length) == (30, 8192)


def test_the_embedded_model_continues_english(embedded: InfiniModel) -> None:
    prompt = embedded.encoder.encode("The capital of France is")
    steps = list(generate(embedded, [prompt], max_new_tokens=3))
    assert "Paris" in embedded.tokenizer.decode([token for (token,) in steps if token is not None])


def build(cache: str) -> str:
    import os

    os.environ["INFINIMEM_CACHE"] = cache
    return str(model_directory(DEFAULT, fetch=False))


@pytest.mark.slow
def test_two_processes_build_the_cache_at_once_and_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        places = pool.map(build, [str(tmp_path)] * 2)
    assert places[0] == places[1]
    built = Path(places[0])
    sums = json.loads((built / "checksums.json").read_text())
    here = model_directory(DEFAULT, fetch=True)
    assert here is not None and sums == json.loads((here / "checksums.json").read_text())
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("harm", ["change", "remove file", "remove sums"])
def test_a_damaged_cache_is_refused_with_the_remedy(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model_directory(DEFAULT, fetch=True)
    assert original is not None
    copy = tmp_path / original.name
    copy.mkdir()
    for file in original.iterdir():
        if file.name == "model.safetensors":
            (copy / file.name).symlink_to(file)
        else:
            shutil.copy(file, copy / file.name)
    if harm == "change":
        with (copy / "config.json").open("a") as file:
            file.write(" ")
    elif harm == "remove file":
        (copy / "tokenizer.json").unlink()
    else:
        (copy / "checksums.json").unlink()
    monkeypatch.setenv("INFINIMEM_CACHE", str(tmp_path))
    with pytest.raises(ModelCacheDamaged, match="delete"):
        load_base()


def test_without_package_and_network_the_remedy_is_named(nothing_here: None) -> None:
    with pytest.raises(DefaultModelMissing, match="with a network, run: infinimem models get smollm2-135m"):
        load_base()
    with pytest.raises(NoNetwork, match="check the network"):
        load_base("smollm2-135m")
    with pytest.raises(ModelNotFound, match="may not download it; run: infinimem models get smollm2-135m"):
        load_base("smollm2-135m-instruct", fetch=False)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/dir", "a/b/c", "~/no-such-model"])
def test_a_directory_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no model directory"):
        load_base(name)


@pytest.mark.parametrize("name", [DEFAULT.name, *DEFAULT.old_names, DEFAULT.hub])
def test_a_directory_called_like_the_default_model_does_not_pass_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_directory: Path, nothing_here: None
) -> None:
    shutil.copytree(tiny_directory, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DefaultModelMissing):
        load_base()


def test_a_hub_id_without_network_is_refused(offline: None) -> None:
    with pytest.raises(ModelNotFound, match="no network"):
        load_base("someone/some-model")
    with pytest.raises(ModelNotFound, match="not on this machine"):
        load_base("someone/some-model", fetch=False)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="usable model"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelNotFound, match="usable model"):
        load_base(tmp_path)


def test_a_directory_without_weights_or_tokenizer_is_refused(tmp_path: Path, tiny_directory: Path) -> None:
    shutil.copy(tiny_directory / "config.json", tmp_path)
    with pytest.raises(ModelNotFound, match="usable model"):
        load_base(tmp_path)


def test_a_model_that_does_not_continue_text_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(d_model=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(NotACausalLM, match="t5"):
        load_base(tmp_path)


def test_a_model_without_rotary_embeddings_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16).save_pretrained(tmp_path)
    with pytest.raises(NoRotaryEmbedding, match="gpt2"):
        load_base(tmp_path)


def test_code_in_a_model_directory_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotFound):
        load_base(tmp_path)


def test_a_directory_is_loaded_and_keeps_its_name(tiny_directory: Path) -> None:
    model, tokenizer, name = load_base(tiny_directory, dtype=torch.float32)
    assert name == str(tiny_directory) and not model.training
    assert torch.equal(model.lm_head.weight, tiny_network("Llama").lm_head.weight)
    assert tokenizer("hello")["input_ids"]


@pytest.mark.parametrize(
    ("supported", "single", "half", "dtype"),
    [
        (True, 1.0, 0.5, torch.bfloat16),
        (True, 1.0, 1.4, torch.bfloat16),
        (True, 1.0, 1.6, torch.float32),
        (False, 1.0, 0.5, torch.float32),
    ],
)
def test_a_processor_computes_in_bfloat16_unless_float32_is_clearly_faster(
    supported: bool, single: float, half: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(pretrained, "_seconds_for_products", lambda: (single, half))
    monkeypatch.setattr(pretrained, "_bfloat16_pays", pretrained._bfloat16_pays.__wrapped__)
    assert pretrained.best_dtype() == dtype


def test_the_identity_survives_a_change_of_dtype_but_not_of_weights(tiny_directory: Path) -> None:
    wide = InfiniModel.from_pretrained(tiny_directory, dtype=torch.float32)
    again = InfiniModel.from_pretrained(tiny_directory, dtype=torch.float32)
    assert wide.identity() == again.identity()
    with torch.no_grad():
        again.model.get_decoder().norm.weight[0] += 1
    again._identity = None
    assert wide.identity() != again.identity()


def test_bfloat16_weights_have_one_identity_in_both_dtypes(embedded: InfiniModel) -> None:
    other = InfiniModel.from_pretrained(
        dtype=torch.float32 if embedded.model.dtype == torch.bfloat16 else torch.bfloat16
    )
    assert other.identity() == embedded.identity()


def test_a_model_that_begins_texts_with_a_token_gets_it_in_every_segment(tokenizer: Any) -> None:
    from infinimem.attention.rules import make_rule

    class Beginning:
        def __init__(self) -> None:
            self.chat_template = None

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **settings: Any) -> Any:
            plain = tokenizer(text, **{k: v for k, v in settings.items() if k != "add_special_tokens"})
            if settings.get("add_special_tokens", True):
                plain["input_ids"] = [1, *plain["input_ids"]]
            return plain

    rule = make_rule("slots", slots=64)
    model = InfiniModel(tiny_network("Llama"), Beginning(), rule, segment_length=8, carry=0)  # type: ignore[arg-type]
    assert model.prefix == [1]
    seen: list[torch.Tensor] = []
    model.model.get_input_embeddings().register_forward_hook(lambda m, args, out: seen.append(args[0]))
    cache = model.new_cache()
    read(model, torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]), cache)
    assert [s[0].tolist() for s in seen] == [[1, 5, 6, 7, 8, 9, 10, 11, 12], [1, 13, 14]]
    assert cache.seen is not None and cache.seen.tolist() == [10]
    assert next(iter(cache.states().values()))["counts"].shape[-1] == 10


def test_wrong_segment_lengths_and_layers_are_refused(tokenizer: Any) -> None:
    from infinimem.attention.rules import make_rule
    from infinimem.errors import InvalidSetting

    for settings in (
        {"segment_length": 0},
        {"memory_heads": [9]},
        {"memory_heads": []},
        {"memory_heads": [-1]},
        {"memory_heads": {1: [5]}},
        {"memory_heads": {1: []}},
    ):
        with pytest.raises(InvalidSetting):
            InfiniModel(tiny_network("Llama"), tokenizer, make_rule("slots"), **settings)
