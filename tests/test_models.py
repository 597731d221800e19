"""The catalogue, and weights that come through pip from a package index in a directory."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TEXT
from test_gguf import make_network, write_gguf

from infinimem import DocumentMemory
from infinimem.cli.main import main
from infinimem.errors import (
    DefaultModelMissing,
    DiskFull,
    ModelMismatch,
    ModelNotFound,
    NoNetwork,
    UnknownModel,
    WrongChecksum,
)
from infinimem.model import catalogue as catalogue_module
from infinimem.model import download
from infinimem.model.cached import get_model, remove_model
from infinimem.model.catalogue import catalogue, default_models, find_model, named_model, wheel_hashes
from infinimem.model.infini_model import InfiniModel
from infinimem.model.pretrained import load_base

PARTS = 2
SETTINGS: dict[str, Any] = {"segment_length": 32, "adapter": "none"}


def test_every_model_of_the_catalogue_can_be_had_and_says_under_which_terms() -> None:
    for model in catalogue():
        assert model.licence == "Apache-2.0" and len(model.sha256) == 64 and model.download_bytes < 2e9
        assert all(len(wheel_hashes()[wheel]) == 64 for wheel in model.wheels)
    assert [model.name for model in catalogue()] == ["smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b"]
    assert default_models() and find_model(None) in catalogue()


def test_names_of_older_releases_mean_the_same_model() -> None:
    assert find_model("smollm2-135m-instruct") is named_model("smollm2-135m")
    assert find_model("someone/some-model") is None
    with pytest.raises(UnknownModel, match="choose from smollm2-135m, qwen"):
        get_model("qwen")


def test_the_list_of_models_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from infinimem.cli.main import main; main(['models', '--json'], standalone_mode=False); "
    code += "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    environment = {**os.environ, "INFINIMEM_CACHE": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    (found,) = [row for row in json.loads(result.stdout)["models"] if row["name"] == "qwen2.5-0.5b"]
    assert found == {
        "name": "qwen2.5-0.5b",
        "parameters": 494032768,
        "licence": "Apache-2.0",
        "download_bytes": 491400064,
        "installed": False,
        "default": False,
        "quality": named_model("qwen2.5-0.5b").quality,
        "tokens_per_second": named_model("qwen2.5-0.5b").tokens_per_second,
    }


# A catalogue of one tiny model, in wheels of an index that is a directory.


class Shop:
    """A tiny model, its GGUF file in three wheels, and the catalogue that names it.

    data: the catalogue's directory. index: the wheels. cache: an empty cache.
    """

    def __init__(self, root: Path, gguf: Path) -> None:
        self.index, self.cache, self.data = root / "index", root / "cache", root / "data"
        self.index.mkdir()
        self.data.mkdir()
        self.gguf = gguf
        content, hashes = gguf.read_bytes(), []
        step = -(-len(content) // PARTS)
        for number in range(1, PARTS + 1):
            wheel = self.index / f"tiny_shop_part{number}-1.0-py3-none-any.whl"
            information = f"tiny_shop_part{number}-1.0.dist-info"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"tiny_shop_part{number}/__init__.py", "raise SystemExit('imported')\n")
                part = content[(number - 1) * step : number * step]
                archive.writestr(f"tiny_shop_part{number}/data/part{number}.bin", part)
                said = f"Metadata-Version: 2.1\nName: tiny-shop-part{number}\nVersion: 1.0\n"
                archive.writestr(f"{information}/METADATA", said)
                archive.writestr(
                    f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
                )
                archive.writestr(f"{information}/RECORD", "")
            hashes.append(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}")
        self.model = dataclasses.replace(
            named_model("qwen2.5-0.5b"),
            name="tiny-shop",
            download_bytes=len(content),
            parameters=10_000,
            sha256=hashlib.sha256(content).hexdigest(),
            wheel="tiny_shop_part{}-1.0-py3-none-any.whl",
            parts=PARTS,
            hub_gguf=None,
            hub="nobody/tiny-shop",
            config={"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 512},
        )
        entries = [dataclasses.asdict(model) for model in (self.model, *catalogue())]
        content_of = {"defaults": ["smollm2-135m"], "models": entries}
        (self.data / "catalogue.json").write_text(json.dumps(content_of))
        (self.data / "wheels.sha256").write_text("\n".join(hashes) + "\n")

    @property
    def parts(self) -> Path:
        """Where downloads are until they are complete."""
        return self.model.directory.with_name(f"{self.model.directory.name}.parts")

    def change(self, defaults: list[str] | None = None, **fields: Any) -> None:
        """Change the tiny model's entry in the catalogue, or the defaults."""
        content = json.loads((self.data / "catalogue.json").read_text())
        content["models"][0] |= fields
        content["defaults"] = defaults or content["defaults"]
        (self.data / "catalogue.json").write_text(json.dumps(content))
        forget()

    def wheel(self, number: int) -> Path:
        return self.index / self.model.wheels[number - 1]


# Stands in front of what another process runs: the same catalogue, the same index.
OTHER_PROCESS = """
import sys
from pathlib import Path
from infinimem.model import catalogue, download
data = Path(sys.argv[1])
catalogue.CATALOGUE, catalogue.WHEELS = data / "catalogue.json", data / "wheels.sha256"
"""


@pytest.fixture
def shop(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Shop(tmp_path, write_gguf(tmp_path / "tiny.gguf", "Llama", make_network("Llama"), tokenizer))
    monkeypatch.setenv("INFINIMEM_CACHE", str(made.cache))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    # No configuration of this machine; the index is the directory alone.
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(catalogue_module, "CATALOGUE", made.data / "catalogue.json")
    monkeypatch.setattr(catalogue_module, "WHEELS", made.data / "wheels.sha256")
    forget()
    yield made
    forget()


def forget() -> None:
    catalogue_module._content.cache_clear()
    catalogue_module.wheel_hashes.cache_clear()


def test_wheels_are_downloaded_joined_and_made_into_a_model(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    directory = get_model("tiny-shop", progress=lambda *what: told.append(what))
    assert directory == shop.model.directory and (directory / "model.safetensors").is_file()
    assert [path.name for path in shop.cache.iterdir() if path.is_dir()] == [directory.name]
    assert told[0] == ("tiny-shop, part 1 of 2", 0, shop.model.download_bytes)
    assert told[-1][0] == "converting tiny-shop" and told[-1][1] == told[-1][2]
    assert "getting tiny-shop" in capsys.readouterr().err
    assert "tiny_shop_part1" not in sys.modules
    direct = InfiniModel.from_pretrained(shop.gguf, **SETTINGS)
    assert InfiniModel.from_pretrained("tiny-shop", **SETTINGS).identity() == direct.identity()


def test_an_interrupted_download_goes_on_with_the_part_that_is_missing(shop: Shop) -> None:
    hidden = shop.wheel(2).rename(shop.index.parent / "hidden.whl")
    with pytest.raises(NoNetwork, match="part2"):
        get_model("tiny-shop")
    assert [path.name for path in shop.parts.glob("*.whl")] == [shop.wheel(1).name]
    hidden.rename(shop.wheel(2))
    # The first part is not asked for again.
    shop.wheel(1).unlink()
    assert get_model("tiny-shop").is_dir() and not shop.parts.exists()


def test_a_killed_download_leaves_nothing_in_the_way(shop: Shop) -> None:
    code = OTHER_PROCESS + (
        "import os, signal\n"
        "from infinimem.model.cached import get_model\n"
        "def stop(what, done, total):\n"
        "    if 'part 2' in what: os.kill(os.getpid(), signal.SIGKILL)\n"
        "get_model('tiny-shop', progress=stop)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(shop.data)], capture_output=True)
    assert ended.returncode == -9 and len(list(shop.parts.glob("*.whl"))) == 1 and not shop.model.directory.exists()
    assert get_model("tiny-shop").is_dir() and not shop.parts.exists()


def test_a_killed_conversion_goes_on_without_another_download(shop: Shop) -> None:
    code = OTHER_PROCESS + (
        "import os, signal\n"
        "from infinimem.model.cached import get_model\n"
        "def stop(what, done, total):\n"
        "    if 'converting' in what: os.kill(os.getpid(), signal.SIGKILL)\n"
        "get_model('tiny-shop', progress=stop)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(shop.data)], capture_output=True)
    assert ended.returncode == -9 and not list(shop.parts.glob("*.whl"))
    for wheel in shop.index.iterdir():
        wheel.unlink()
    assert get_model("tiny-shop").is_dir() and not shop.parts.exists()
    assert not list(shop.cache.glob(".*"))


@pytest.mark.parametrize("number", [1, PARTS])
def test_a_wheel_with_a_flipped_byte_is_refused_deleted_and_named(number: int, shop: Shop) -> None:
    good = shop.wheel(number).read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    shop.wheel(number).write_bytes(bad)
    with pytest.raises(WrongChecksum, match=f"tiny_shop_part{number}-1.0.*deleted"):
        get_model("tiny-shop")
    assert not (shop.parts / shop.wheel(number).name).exists() and not shop.model.directory.exists()
    shop.wheel(number).write_bytes(good)
    assert get_model("tiny-shop").is_dir()


def test_a_part_that_was_damaged_on_the_disk_is_downloaded_again(shop: Shop) -> None:
    shop.parts.mkdir(parents=True)
    (shop.parts / shop.wheel(1).name).write_bytes(b"half a wheel")
    assert get_model("tiny-shop").is_dir()


def test_wheels_that_join_to_another_file_are_refused(shop: Shop) -> None:
    shop.change(sha256="0" * 64)
    with pytest.raises(WrongChecksum, match="weights of tiny-shop"):
        get_model("tiny-shop")
    assert not named_model("tiny-shop").directory.exists()


def test_two_processes_at_once_do_the_work_once(shop: Shop) -> None:
    code = OTHER_PROCESS + (
        "from infinimem.model.cached import get_model\n"
        "told = []\n"
        "print(get_model('tiny-shop', progress=lambda *what: told.append(what)), bool(told))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(shop.data)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0].split()[-1] for process in started)
    assert said == ["False", "True"] and all(process.returncode == 0 for process in started)


def test_without_any_network_one_line_says_what_to_do(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.data))
    result = CliRunner().invoke(main, ["models", "get", "tiny-shop"])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "check the network" in line and "--from" in line
    with pytest.raises(NoNetwork, match="hub"):
        get_model("tiny-shop", "hub")


def test_a_full_disk_is_told_as_such_and_leaves_no_model(shop: Shop) -> None:
    """A process that may write no file larger than a part stands for a disk that is full in the middle of the work."""
    code = OTHER_PROCESS + (
        "import resource\n"
        "from infinimem.errors import DiskFull\n"
        "from infinimem.model.cached import get_model\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: get_model('tiny-shop')\n"
        "except DiskFull as error: print(error)\n"
    )
    wheel, whole = shop.wheel(1).stat().st_size, shop.model.download_bytes
    for limit, what in ((wheel // 2, "part1"), (whole - 1, "tiny-shop")):
        ended = subprocess.run(
            [sys.executable, "-c", code, str(shop.data), str(limit)], capture_output=True, text=True, check=True
        )
        assert what in ended.stdout and "INFINIMEM_CACHE" in ended.stdout, ended.stdout + ended.stderr
        assert not shop.model.directory.exists() and not list(shop.cache.glob(".*"))
    assert get_model("tiny-shop").is_dir()


def test_too_little_room_is_told_before_anything_is_downloaded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    few = shutil.disk_usage(shop.data)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: few)
    with pytest.raises(DiskFull, match="tiny-shop needs"):
        get_model("tiny-shop")


def test_a_machine_without_pip_says_so(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import venv

    from infinimem.errors import PipMissing

    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(PipMissing, match="ensurepip"):
        get_model("tiny-shop")


@pytest.mark.parametrize("kind", ["file", "directory of the file", "directory of wheels"])
def test_weights_that_the_user_has_need_no_index(kind: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.data))
    place = {"file": shop.gguf, "directory of the file": shop.gguf.parent, "directory of wheels": shop.index}[kind]
    result = CliRunner().invoke(main, ["models", "get", "tiny-shop", "--from", str(place), "--json"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["installed"] and row["directory"] == str(shop.model.directory) and not row["was_installed"]
    assert shop.gguf.is_file() and shop.wheel(1).is_file()


def test_an_installed_package_with_the_file_is_read_and_never_imported(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, information = tmp_path / "site", tmp_path / "site" / "carries_tiny-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "carries_tiny").mkdir()
    (site / "carries_tiny" / "__init__.py").write_text("raise SystemExit('imported')\n")
    shutil.copy(shop.gguf, site / "carries_tiny" / "tiny.gguf")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: carries-tiny\nVersion: 1.0\n")
    (information / "RECORD").write_text("carries_tiny/__init__.py,,\ncarries_tiny/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    shop.change(package="carries-tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.data))
    # Nothing is downloaded, so a memory that names the model may have it made, too.
    assert load_base("tiny-shop", fetch=False)[2] == "tiny-shop"
    assert "carries_tiny" not in sys.modules and not shop.parts.exists()


def test_another_file_does_not_pass_for_a_model_of_the_catalogue(shop: Shop, tiny_directory: Path) -> None:
    other = shop.data / "other.gguf"
    other.write_bytes(shop.gguf.read_bytes() + b"\0")
    with pytest.raises(WrongChecksum, match="--model FILE"):
        get_model("tiny-shop", str(other))
    for place in (tiny_directory, shop.data / "nowhere"):
        with pytest.raises(ModelNotFound):
            get_model("tiny-shop", str(place))


def test_a_removed_model_is_gone_with_all_its_downloads(shop: Shop) -> None:
    get_model("tiny-shop")
    shop.parts.mkdir()
    (shop.parts / "left.whl").write_bytes(b"x" * 10)
    size = sum(path.stat().st_size for path in shop.model.directory.iterdir())
    assert remove_model("tiny-shop") == size + 10
    assert not [path for path in shop.cache.iterdir() if path.is_dir()] and remove_model("tiny-shop") == 0
    result = CliRunner().invoke(main, ["models", "remove", "tiny-shop"])
    assert result.output == "tiny-shop is not in the cache.\n"


# Names where models are named


def test_a_model_that_the_user_names_is_downloaded_and_a_memory_alone_downloads_nothing(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = DocumentMemory.from_text(TEXT, model="tiny-shop", **SETTINGS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("infinimem: getting tiny-shop (1 MB, Apache-2.0) from the package index")
    memory.save(tmp_path / "m")
    assert memory.info()["model"] == "tiny-shop"
    question = {"answer_from": "memory", "max_new_tokens": 4}
    assert DocumentMemory.load(tmp_path / "m").ask("Who?", **question).text == memory.ask("Who?", **question).text
    assert capsys.readouterr().err == ""
    remove_model("tiny-shop")
    with pytest.raises(ModelNotFound, match="may not download it; run: infinimem models get tiny-shop"):
        load_base("tiny-shop", fetch=False)


def test_a_model_of_another_name_is_refused_before_anything_is_downloaded(shop: Shop, tmp_path: Path) -> None:
    DocumentMemory.from_text(TEXT, model="tiny-shop", **SETTINGS).save(tmp_path / "m")
    for name in ("qwen2.5-0.5b", "smollm2-135m-instruct"):
        now = named_model(name).name
        with pytest.raises(ModelMismatch) as caught:
            DocumentMemory.load(tmp_path / "m", model=name)
        assert str(caught.value).startswith(
            f"this memory was made with tiny-shop; you gave {now}; read the document again or leave --model out"
        )
        assert not named_model(name).directory.exists()
    result = CliRunner().invoke(main, ["ask", str(tmp_path / "m"), "Who?", "--model", "qwen2.5-1.5b"])
    assert result.exit_code == 1 and "made with tiny-shop; you gave qwen2.5-1.5b" in result.output


def test_the_environment_names_the_default_of_a_machine(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINIMEM_MODEL", "tiny-shop")
    assert DocumentMemory.from_text(TEXT, **SETTINGS).info()["model"] == "tiny-shop"
    rows = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)["models"]
    assert [row["name"] for row in rows if row["default"]] == ["tiny-shop"]
    monkeypatch.setenv("INFINIMEM_MODEL", str(shop.gguf))
    assert DocumentMemory.from_text(TEXT, **SETTINGS).info()["model"] == str(shop.gguf)


def test_where_the_default_cannot_be_had_the_next_one_is_taken_and_one_line_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = "".join(f"{'0' * 64}  {name}\n" for name in named_model("qwen2.5-0.5b").wheels)
    with (shop.data / "wheels.sha256").open("a") as file:
        file.write(hashes)
    shop.change(defaults=["qwen2.5-0.5b", "tiny-shop"])
    get_model("tiny-shop")
    capsys.readouterr()
    assert DocumentMemory.from_text(TEXT, **SETTINGS).info()["model"] == "tiny-shop"
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be had" in line]
    assert len(said) == 1 and "qwen2.5-0.5b cannot be had" in said[0] and said[0].endswith("using tiny-shop")
    # The next time, nothing is asked for again.
    assert InfiniModel.from_pretrained(**SETTINGS).name == "tiny-shop"
    (line,) = capsys.readouterr().err.splitlines()
    assert "within the last day" in line


def test_without_any_default_the_error_says_what_to_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    shop.change(defaults=["tiny-shop"])
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.data))
    with pytest.raises(DefaultModelMissing, match="infinimem models get tiny-shop"):
        DocumentMemory.from_text(TEXT)
