"""How a model is loaded is said in the same words everywhere, and bad words get one sentence."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from latentwire import LM, UserError
from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.loading.model_sources import split_revision
from latentwire.runs import identity
from tests.support.checkpoints import write_plain
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tiny_model(max_position_embeddings=1024), tmp_path_factory.mktemp("model"))


def test_a_model_is_held_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    for name in ("float32", "bfloat16", "float16"):
        lm = LM.load(folder, Loading.parse(dtype=name), device="cpu")
        assert {p.dtype for p in lm.model.parameters()} == {getattr(torch, name)}
    assert (
        LM.load(folder, Loading(dtype="bfloat16"), device="cpu", dtype=torch.float32).model.dtype == torch.bfloat16
    )


def test_options_say_what_yaml_says() -> None:
    parsed = Loading.parse(dtype="bfloat16", device_map='{"": 0}', bits=8, max_memory="0=40GiB+cpu=100GiB")
    yaml: dict[str, Any] = {"dtype": "bfloat16", "device_map": {"": 0}, "bits": 8}
    assert parsed == Loading(**yaml, max_memory={0: "40GiB", "cpu": "100GiB"})
    assert Loading.parse(device_map="auto") == Loading(device_map="auto")
    assert Loading.parse() == Loading()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bf16"}, r"dtype: found 'bf16', expected one of float32, bfloat16, float16"),
        ({"bits": 3}, r"bits: found 3, expected 4 or 8"),
        ({"device_map": "{1"}, r"device_map: found '\{1', which is not JSON; expected auto"),
        ({"max_memory": "lots"}, r"max_memory: found 'lots', expected a size such as 40GiB"),
        ({"max_memory": "0=lots"}, r"max_memory: found 'lots', expected a size such as 40GiB"),
        ({"max_memory": "0=1GiB+5"}, r"max_memory: found '5', expected DEVICE=SIZE"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Loading.parse(**options)


def test_one_size_needs_an_accelerator_and_is_meant_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="max_memory: found 40GiB for each accelerator, and this machine has none"):
        Loading(max_memory="40GiB").memory_by_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Loading(max_memory="40GiB").memory_by_device() == {0: "40GiB", 1: "40GiB"}


def test_memory_that_is_capped_is_passed_on_with_a_device_map(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM.load(folder, Loading(max_memory={"cpu": "10GiB"}))
    assert lm.device.type == "cpu"
    asked = {}

    def loads(*_: object, **options: object) -> object:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)
    with pytest.raises(UserError, match="enough"):
        LM.load(folder, Loading(max_memory={"cpu": "10GiB"}))
    assert asked["max_memory"] == {"cpu": "10GiB"}
    assert asked["device_map"] == "auto"


@pytest.mark.parametrize(("bits", "key"), [(4, "load_in_4bit"), (8, "load_in_8bit")])
def test_bits_become_settings_of_bitsandbytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bits: int, key: str
) -> None:
    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: name == "bitsandbytes" or honest(name, *rest)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: dict[str, Any] = {}

    def loads(*_: object, **options: object) -> object:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loads)
    with pytest.raises(UserError, match="enough"):
        LM.load(folder, Loading.parse(bits=bits), device="cuda:0")
    assert getattr(asked["quantization_config"], key)
    assert asked["device_map"] == {"": "cuda:0"}


def test_a_revision_stands_behind_an_at_sign_or_in_an_option(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert split_revision("org/name@v1.0") == ("org/name", "v1.0")
    assert split_revision("org/name") == ("org/name", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "at@home").mkdir()
    assert split_revision("at@home") == ("at@home", None)
    assert split_revision("./there@home") == ("./there@home", None)
    with pytest.raises(UserError, match=r"revision: found v2 beside org/name@v1, expected one of the two"):
        LM.load("org/name@v1", Loading(revision="v2"))
    with pytest.raises(UserError, match=r"revision: found v2 for .*, which is a local model; expected a hub id"):
        LM.load(folder, Loading(revision="v2"))


@pytest.mark.slow
def test_a_revision_of_a_hub_model_is_the_one_that_is_read(folder: Path, tmp_path: Path) -> None:
    """In a hub cache with two commits: each is found by its branch, in a process whose cache this is."""
    repo = tmp_path / "hub" / "models--org--name"
    for branch, seed in (("main", 0), ("other", 7)):
        commit = f"{seed:040d}"
        write_plain(tiny_model(seed=seed), repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
    code = """
import sys, json
from latentwire import LM
from latentwire.lm.loading.load_settings import Loading
from latentwire.runs.identity import model_folder
first = lambda lm: float(lm.model.lm_head.weight[0, 0])
print(json.dumps([
    first(LM.load("org/name", device="cpu")),
    first(LM.load("org/name@other", device="cpu")),
    first(LM.load("org/name", Loading(revision="other"), device="cpu")),
    model_folder("org/name", "other").name,
    model_folder("org/name@other").name,
    model_folder("org/name").name,
]))
"""
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    main, other = (float(tiny_model(seed=seed).lm_head.weight[0, 0].detach()) for seed in (0, 7))
    commits = [f"{seed:040d}" for seed in (7, 7, 0)]
    assert json.loads(done.stdout.splitlines()[-1]) == [main, other, other, *commits]


def test_the_hub_folder_of_a_study_is_that_of_the_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def downloads(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", downloads)
    identity.model_folder("org/name", "v1")
    identity.model_folder("org/name@v2")
    assert asked == [("org/name", "v1"), ("org/name", "v2")]


@pytest.mark.parametrize("command", ["eval", "audit"])
def test_commands_take_every_option_of_loading(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentwire import cli

    asked: list[Any] = []

    def loads(spec: str, loading: Loading, **_: object) -> object:
        asked.append(loading)
        raise UserError("enough.")

    monkeypatch.setattr(LM, "load", loads)
    task = ["--task", "one_hop"] if command == "eval" else []
    options = ["--dtype", "bfloat16", "--device-map", "auto", "--bits", "8", "--revision", "v1"]
    options += ["--max-memory", "0=1GiB", "--trust-remote-code"]
    monkeypatch.setattr(sys, "argv", ["latentwire", command, "--model", str(folder), *task, *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert asked == [
        Loading(
            dtype="bfloat16",
            device_map="auto",
            bits=8,
            revision="v1",
            max_memory={0: "1GiB"},
            trust_remote_code=True,
        )
    ]
    capsys.readouterr()
