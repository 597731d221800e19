"""Adapters: what is read, what is refused, what is merged, and that a memory file keeps to its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import TEXT, random_tokens, tiny_network
from safetensors.torch import load_file, save_file

from infinimem import DocumentMemory
from infinimem.attention import Attachment
from infinimem.cli.main import main
from infinimem.errors import (
    AdapterMismatch,
    AdapterNotFound,
    DamagedAdapter,
    ModelMismatch,
    TargetNotWritable,
    UnsupportedAdapter,
)
from infinimem.model import adapter as adapter_module
from infinimem.model.adapter import load_adapter, read_adapter, write_adapter
from infinimem.model.infini_model import InfiniModel
from infinimem.model.lora import merge_lora
from infinimem.search.ranking import LexicalRanker

HEADS = {str(layer): [0, 1] for layer in (1, 2, 3)}
SHAPES = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.down_proj": (64, 96)}
TRAINED = {"rule": "linear", "rule_settings": {"gate": -3.0}, "segment_length": 40, "memory_heads": HEADS}


def make_adapter(directory: Path, seed: int = 0, **trained: Any) -> Path:
    """An adapter with random weights for the tiny Llama, rank 4."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    lora = {
        f"model.layers.{layer}.{path}": (normal(4, width), normal(height, 4))
        for layer in range(4)
        for path, (height, width) in SHAPES.items()
    }
    memory = {**TRAINED, **trained}
    gates = {i: normal(4) for i in map(int, memory["memory_heads"])} if memory["rule"] != "slots" else {}
    write_adapter(directory, lora=lora, alpha=6.0, base="tiny", gates=gates, memory=memory)
    return directory


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def slots_adapter(tmp_path: Path) -> Path:
    settings = {"slots": 24, "distance": 16, "balance": 1.0, "mass": 0.8, "packing": "float16"}
    return make_adapter(tmp_path / "slots", rule="slots", rule_settings=settings, segment_length=32)


def test_what_was_written_is_read_again(adapter: Path) -> None:
    found = read_adapter(adapter, "mine")
    random = torch.Generator().manual_seed(0)
    first = torch.randn(4, 64, generator=random) * 0.2
    assert torch.equal(found.lora["model.layers.0.self_attn.q_proj"][0], first) and len(found.lora) == 12
    assert found.scale == 1.5 and found.memory == TRAINED and found.name == "mine"
    assert sorted(found.gates) == [1, 2, 3] and all(beta.shape == (4,) for beta in found.gates.values())


def test_the_hash_is_of_the_content(adapter: Path, tmp_path: Path) -> None:
    again = make_adapter(tmp_path / "again")
    other = make_adapter(tmp_path / "other", seed=1)
    (again / "README.md").write_text("not part of the adapter")
    assert read_adapter(adapter).sha256 == read_adapter(again).sha256 != read_adapter(other).sha256
    (again / "memory.safetensors").unlink()
    assert read_adapter(again).sha256 != read_adapter(adapter).sha256


def test_merging_adds_the_scaled_product_in_float32(adapter: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        network = tiny_network("Llama").to(dtype)
        before = {name: weight.clone() for name, weight in network.state_dict().items()}
        found = read_adapter(adapter)
        merge_lora(network, found)
        for name, weight in network.state_dict().items():
            path = name.removesuffix(".weight")
            expected = before[name].double()
            if path in found.lora:
                a, b = (half.double() for half in found.lora[path])
                expected = expected + 1.5 * b @ a
                assert not torch.equal(weight, before[name])
            tolerance = 1e-6 if dtype == torch.float32 else 2**-8
            torch.testing.assert_close(weight.double(), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_peft_merges_the_same_directory_to_the_same_model(adapter: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(tiny_network("Llama"), str(adapter)).merge_and_unload()
    ours = tiny_network("Llama")
    merge_lora(ours, read_adapter(adapter))
    for (name, mine), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7, msg=name)
    tokens = random_tokens(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_wrote_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True)
    wrapped = peft.get_peft_model(tiny_network("Llama"), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    wrapped.save_pretrained(tmp_path / "theirs")
    found = read_adapter(tmp_path / "theirs")
    assert found.scale == 4.0 and found.memory == {} and found.gates == {}
    ours = tiny_network("Llama")
    merge_lora(ours, found)
    for (name, mine), (_, other) in zip(
        ours.state_dict().items(), wrapped.merge_and_unload().state_dict().items(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6, msg=name)


def test_a_model_takes_rule_and_settings_from_its_adapter(tiny_directory: Path, adapter: Path) -> None:
    model = InfiniModel.from_pretrained(tiny_directory, adapter=adapter)
    assert (model.rule.name, model.rule.settings()) == ("linear", {"gate": -3.0})
    assert (model.segment_length, list(model.memory_heads)) == (40, [1, 2, 3])
    gates = read_adapter(adapter).gates
    assert torch.equal(model.attachment.modules[2].memory_gate.beta.detach(), gates[2])
    other = InfiniModel.from_pretrained(tiny_directory, adapter=adapter, rule="delta", segment_length=20)
    assert other.rule.name == "delta" and other.segment_length == 20 and list(other.memory_heads) == [0, 1, 2, 3]


def test_an_adapter_enters_the_identity_beside_the_weights_of_the_base(tiny_directory: Path, adapter: Path) -> None:
    settings: dict[str, Any] = {"rule": "linear", "rule_settings": {"gate": -3.0}}
    layout: dict[str, Any] = {"segment_length": 40, "memory_heads": [1, 2, 3]}
    bare = InfiniModel.from_pretrained(tiny_directory, **settings, **layout).identity()
    adapted = InfiniModel.from_pretrained(tiny_directory, adapter=adapter).identity()
    assert bare["adapter"] == "none" and adapted["adapter"] == read_adapter(adapter).sha256
    assert {**adapted, "adapter": "none"} == bare
    half = InfiniModel.from_pretrained(tiny_directory, adapter=adapter, dtype=torch.bfloat16)
    assert half.identity()["adapter"] == adapted["adapter"]


def test_an_adapter_changes_what_the_model_says(tiny_directory: Path, adapter: Path) -> None:
    tokens = random_tokens(1, 30)
    said = []
    for chosen in ("none", adapter):
        model = InfiniModel.from_pretrained(tiny_directory, adapter=chosen)
        with torch.no_grad():
            said.append(model.model(input_ids=tokens).logits)
    assert not torch.allclose(*said, atol=0.1)


def with_answer_adapter(directory: Path, seed: int = 7) -> Path:
    """The same adapter with a reader."""
    make_adapter(directory / "answer", seed=seed)
    (directory / "answer" / "memory.safetensors").unlink()
    return directory


def test_an_answer_adapter_lies_on_top_of_its_adapter_and_shares_the_embeddings(
    tiny_directory: Path, adapter: Path
) -> None:
    model = InfiniModel.from_pretrained(tiny_directory, adapter=with_answer_adapter(adapter), dtype=torch.float32)
    found = read_adapter(adapter)
    assert found.answer is not None
    expected = tiny_network("Llama")
    merge_lora(expected, found)
    merge_lora(expected, found.answer)
    weights = model.answering_model.model.state_dict()
    for name, other in expected.state_dict().items():
        torch.testing.assert_close(weights[name], other, rtol=0, atol=1e-6, msg=name)
    assert model.answering_model is model.answering_model is not model
    embeddings = [one.model.get_input_embeddings().weight.data_ptr() for one in (model, model.answering_model)]
    assert embeddings[0] == embeddings[1]


def test_an_adapter_without_an_answer_adapter_reads_itself(tiny_directory: Path, adapter: Path) -> None:
    model = InfiniModel.from_pretrained(tiny_directory, adapter=adapter)
    assert model.answering_model is model


def test_an_answer_adapter_is_no_part_of_what_a_memory_depends_on(tiny_directory: Path, adapter: Path) -> None:
    before = InfiniModel.from_pretrained(tiny_directory, adapter=adapter).identity()
    assert InfiniModel.from_pretrained(tiny_directory, adapter=with_answer_adapter(adapter)).identity() == before


def test_passages_are_read_by_the_answer_adapter_and_memories_by_the_model(
    tiny_directory: Path, slots_adapter: Path
) -> None:
    model = InfiniModel.from_pretrained(tiny_directory, adapter=with_answer_adapter(slots_adapter))
    memory = DocumentMemory.from_text(TEXT * 4, model=model)
    plain = InfiniModel.from_pretrained(
        tiny_directory,
        adapter=make_adapter(
            slots_adapter.parent / "alone",
            rule="slots",
            rule_settings=read_adapter(slots_adapter).memory["rule_settings"],
            segment_length=32,
        ),
    )
    bare = DocumentMemory.from_text(TEXT * 4, model=plain)
    question = "Who counted the ships?"
    assert memory.ask(question, answer_from="memory").text == bare.ask(question, answer_from="memory").text
    assert memory.ask(question).text != bare.ask(question).text
    assert memory.ask_many([question])[0].text == memory.ask(question).text


def test_a_memory_that_is_ready_leaves_the_first_question_nothing_to_prepare(
    tiny_directory: Path, slots_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = with_answer_adapter(slots_adapter)
    model = InfiniModel.from_pretrained(tiny_directory, adapter=adapter)
    DocumentMemory.from_text(TEXT * 4, model=model).save(tmp_path / "m")
    calls: list[str] = []

    def note(owner: type, name: str) -> None:
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or whole(*a, **k))

    note(Attachment, "twin")
    note(InfiniModel, "read_tokens")
    note(LexicalRanker, "__init__")
    expected = []
    for ready in (False, True):
        loaded = DocumentMemory.load(tmp_path / "m", model=InfiniModel.from_pretrained(tiny_directory, adapter=adapter))
        loaded.open(ready=ready)
        prepared = set(calls)
        calls.clear()
        expected.append(
            [loaded.ask("Who counted the ships?", answer_from=mode).text for mode in ("passages", "memory")]
        )
        assert (prepared, set(calls)) == (
            ({"twin", "read_tokens", "__init__"}, set()) if ready else (set(), {"twin", "read_tokens", "__init__"})
        )
        calls.clear()
    assert expected[0] == expected[1]


def test_an_answer_adapter_for_another_model_is_refused_when_the_adapter_is_loaded(
    tiny_directory: Path, adapter: Path
) -> None:
    def move(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update(
            {name.replace("layers.3", "layers.9"): tensors.pop(name) for name in [*tensors] if "layers.3" in name}
        )

    edit_tensors(with_answer_adapter(adapter) / "answer", "adapter_model.safetensors", move)
    with pytest.raises(AdapterMismatch, match="answer"):
        InfiniModel.from_pretrained(tiny_directory, adapter=adapter)


def test_an_answer_adapter_that_leads_to_itself_is_read_once(adapter: Path) -> None:
    (adapter / "answer").symlink_to(".", target_is_directory=True)
    found = read_adapter(adapter)
    assert found.answer is not None and found.answer.answer is None and found.answer.sha256 == found.sha256


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory: Path, file: str, change: Any) -> None:
    tensors, data = load_file(directory / file), (directory / file).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    change(tensors)
    save_file(tensors, directory / file, metadata=header.get("__metadata__"))


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), AdapterNotFound, "adapter_config.json"),
        (lambda d: (d / "adapter_model.safetensors").unlink(), DamagedAdapter, "adapter_model.safetensors"),
        (lambda d: (d / "adapter_config.json").write_text("{"), DamagedAdapter, "JSON"),
        (lambda d: (d / "adapter_config.json").write_text("[]"), DamagedAdapter, "JSON object"),
        (lambda d: edit_config(d, peft_type="IA3"), UnsupportedAdapter, "IA3"),
        (lambda d: edit_config(d, use_dora=True), UnsupportedAdapter, "use_dora"),
        (lambda d: edit_config(d, bias="all"), UnsupportedAdapter, "bias"),
        (lambda d: edit_config(d, rank_pattern={"q_proj": 2}), UnsupportedAdapter, "rank_pattern"),
        *(
            (lambda d, way=way: edit_config(d, init_lora_weights=way), UnsupportedAdapter, f"init_lora_weights {way}")
            for way in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 1)
        ),
        (lambda d: edit_config(d, r=0), DamagedAdapter, "rank"),
        (lambda d: edit_config(d, r=8), DamagedAdapter, "rank 8"),
        (lambda d: edit_config(d, lora_alpha="many"), DamagedAdapter, "lora_alpha"),
        (
            lambda d: (d / "adapter_model.safetensors").write_bytes(
                (d / "adapter_model.safetensors").read_bytes()[:-5]
            ),
            DamagedAdapter,
            "damaged",
        ),
        (lambda d: (d / "memory.safetensors").write_bytes(b"\x80\x04pickle"), DamagedAdapter, "memory.safetensors"),
        (
            lambda d: edit_tensors(d, "adapter_model.safetensors", lambda t: t[FIRST].fill_(float("nan"))),
            DamagedAdapter,
            "values",
        ),
        (lambda d: edit_tensors(d, "adapter_model.safetensors", lambda t: t.pop(FIRST)), DamagedAdapter, "lacks"),
        (
            lambda d: edit_tensors(d, "adapter_model.safetensors", lambda t: t.update(embed=torch.ones(2))),
            UnsupportedAdapter,
            "embed",
        ),
        (
            lambda d: edit_tensors(d, "memory.safetensors", lambda t: t.update(other=torch.ones(2))),
            DamagedAdapter,
            "no gate",
        ),
        (
            lambda d: save_file({}, d / "memory.safetensors", metadata={"infinimem.trained": '{"rule": 3}'}),
            DamagedAdapter,
            "wrong type",
        ),
        (lambda d: save_file({}, d / "memory.safetensors"), DamagedAdapter, "trained with"),
        *(
            (lambda d, heads=heads: make_adapter(d, rule="slots", memory_heads=heads), DamagedAdapter, "wrong type")
            for heads in ({"1": [[0]]}, {"1": ["0"]}, {"1": [True]}, {"1": 0})
        ),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_by_its_cause(
    adapter: Path, damage: Any, error: type[Exception], says: str
) -> None:
    damage(adapter)
    with pytest.raises(error, match=says) as caught:
        load_adapter(adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_a_beginning_that_leaves_the_base_alone_is_taken(adapter: Path, way: Any) -> None:
    edit_config(adapter, init_lora_weights=way)
    assert read_adapter(adapter).scale == 1.5


def test_an_adapter_that_cannot_be_written_is_one_error(adapter: Path) -> None:
    found = read_adapter(adapter)
    for place in (adapter / "adapter_config.json", adapter / "adapter_config.json" / "below"):
        with pytest.raises(TargetNotWritable, match="choose another place"):
            write_adapter(place, lora=found.lora, alpha=1.0, base="tiny", gates={}, memory=found.memory)


def test_an_adapter_for_another_model_is_refused_and_changes_nothing(adapter: Path) -> None:
    found = read_adapter(adapter)
    for changes in ({"num_hidden_layers": 2}, {"intermediate_size": 80}):
        network = tiny_network("Llama", **changes)
        before = {name: weight.clone() for name, weight in network.state_dict().items()}
        with pytest.raises(AdapterMismatch):
            merge_lora(network, found)
        assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_gates_need_a_rule_that_has_them(tiny_directory: Path, adapter: Path) -> None:
    with pytest.raises(AdapterMismatch, match="linear"):
        InfiniModel.from_pretrained(tiny_directory, adapter=adapter, rule="slots")


def test_a_memory_file_finds_its_adapter_again(tiny_directory: Path, slots_adapter: Path, tmp_path: Path) -> None:
    memory = DocumentMemory.from_text(TEXT * 2, model=tiny_directory, adapter=slots_adapter)
    memory.save(tmp_path / "m")
    assert memory.model.segment_length == 32
    loaded = DocumentMemory.load(tmp_path / "m")
    loaded.open()
    assert loaded.identity["adapter"] == read_adapter(slots_adapter).sha256
    question = {"answer_from": "memory", "max_new_tokens": 5}
    assert loaded.ask("Who counted?", **question).text == memory.ask("Who counted?", **question).text
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / "m").read_bytes()


def test_a_memory_file_made_with_an_adapter_refuses_the_bare_base(
    tiny_directory: Path, slots_adapter: Path, tmp_path: Path
) -> None:
    DocumentMemory.from_text(TEXT, model=tiny_directory, adapter=slots_adapter).save(tmp_path / "m")
    with pytest.raises(ModelMismatch, match="adapter"):
        DocumentMemory.load(tmp_path / "m", model=tiny_directory, adapter="none")
    make_adapter(slots_adapter, seed=9, rule="slots", rule_settings={"slots": 24}, segment_length=32)
    with pytest.raises(ModelMismatch, match="adapter"):
        DocumentMemory.load(tmp_path / "m").open()


def test_a_memory_file_whose_adapter_has_moved_says_so_and_takes_the_new_place(
    tiny_directory: Path, slots_adapter: Path, tmp_path: Path
) -> None:
    DocumentMemory.from_text(TEXT, model=tiny_directory, adapter=slots_adapter).save(tmp_path / "m")
    shutil.move(slots_adapter, tmp_path / "elsewhere")
    with pytest.raises(AdapterNotFound, match="slots"):
        DocumentMemory.load(tmp_path / "m").open()
    DocumentMemory.load(tmp_path / "m", adapter=tmp_path / "elsewhere").open()


def test_a_memory_file_of_the_bare_base_refuses_an_adapter(
    tiny_directory: Path, slots_adapter: Path, tmp_path: Path
) -> None:
    settings = {"slots": 24, "distance": 16}
    bare = {"rule_settings": settings, "segment_length": 32, "adapter": "none"}
    DocumentMemory.from_text(TEXT, model=tiny_directory, **bare).save(tmp_path / "m")
    with pytest.raises(ModelMismatch, match="adapter: none in the file"):
        DocumentMemory.load(tmp_path / "m", model=tiny_directory, adapter=slots_adapter)


def test_the_default_model_and_no_other_has_the_adapter_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_module, "SHIPPED", tmp_path)
    monkeypatch.setattr(adapter_module, "default_adapter", lambda model: None)
    assert load_adapter(None) is None
    found = {None: "own-1", "smollm2-135m-instruct": "own-1"}
    monkeypatch.setattr(adapter_module, "default_adapter", found.get)
    make_adapter(tmp_path / "own-1")
    make_adapter(tmp_path / "prose", seed=4)
    own = load_adapter(None)
    assert own is not None and own.name == "own-1"
    named = load_adapter(None, "smollm2-135m-instruct")
    assert named is not None and named.sha256 == own.sha256
    assert load_adapter(None, "some/other") is None and load_adapter("none") is None
    prose = load_adapter("prose", "some/other")
    assert prose is not None and prose.name == "prose" and prose.sha256 != own.sha256
    for wrong in ("", "missing", "../prose"):
        with pytest.raises(AdapterNotFound):
            load_adapter(wrong)


def test_the_commands_take_an_adapter(tiny_directory: Path, slots_adapter: Path, tmp_path: Path) -> None:
    def run(*arguments: Any, expect: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == expect, (result.output, result.exception)
        return dict(json.loads(result.stdout)) if expect == 0 else {"error": result.stderr}

    (tmp_path / "story.txt").write_text(TEXT * 2)
    target = tmp_path / "m"
    run("ingest", tmp_path / "story.txt", "-o", target, "-m", tiny_directory, "--adapter", slots_adapter)
    assert DocumentMemory.load(target).info()["segment_length"] == 32
    run("ask", target, "Who counted the ships?", "--max-new-tokens", 3)
    run("ask", target, "Who counted the ships?", "--max-new-tokens", 3, "--adapter", slots_adapter)
    assert run("inspect", target)["adapter"] == str(slots_adapter)
    assert "model" in run("verify", target, "-m", "default", "--adapter", slots_adapter)["checked"]
    refused = run("ask", target, "Who counted the ships?", "--adapter", "none", expect=1)["error"]
    assert refused.startswith("Error: ") and "adapter" in refused and refused.count("\n") == 1
    moved = tmp_path / "moved"
    slots_adapter.rename(moved)
    assert "no adapter directory" in run("merge", target, target, "-o", tmp_path / "both", expect=1)["error"]
    both = run("merge", target, target, "-o", tmp_path / "both", "--adapter", moved)
    assert len(both["sources"]) == 2
    assert "no adapter directory" in run("verify", target, "--adapter", tmp_path / "missing", expect=1)["error"]
    moved.rename(slots_adapter)
    evaluated = ["eval", "passkey", "--tokens", 300, "--depths", "0", "-m", tiny_directory, "--adapter", slots_adapter]
    result = run(*evaluated)
    assert result["rule_settings"]["slots"] == 24 and result["adapter"] == str(slots_adapter)
    assert "no adapter directory" in run(*evaluated[:-1], tmp_path / "missing", expect=1)["error"]
