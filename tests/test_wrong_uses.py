"""What goes wrong on the first day with real models and data: one sentence, status 2, and nothing written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentwire import LM, PromptSettings, cli
from latentwire.wires.latent.modules import LatentConfig, LatentModules
from latentwire.wires.latent.trained_readers import ReaderConfig, save
from tests.support.models import tiny_lm
from tests.support.wire_studies import encoder, fit

ENCODER = encoder()
QUESTION = {
    "context": "Ada lives in the old town.",
    "question": "Where does Ada live?",
    "answers": ["the old town"],
}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and files, right ones and wrong ones."""
    here = tmp_path_factory.mktemp("first-day")
    lm = tiny_lm(max_position_embeddings=256)
    lm.save(here / "model")
    chatting = tiny_lm(max_position_embeddings=256)
    chatting.tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    )
    chatting.save(here / "chat")
    lines(here / "rows.jsonl", [{**QUESTION, "id": str(n), "group": str(n)} for n in range(40)])
    lines(here / "empty_answers.jsonl", [{**QUESTION, "answers": [""] if n % 20 else ["x"]} for n in range(40)])
    lines(here / "alpaca.jsonl", [{"instruction": "Say x.", "output": ""} for _ in range(40)])
    (here / "squad.json").write_text(json.dumps({"version": "1.1", "rows": [QUESTION]}))
    (here / "cut.jsonl.xz").write_bytes(b"\xfd7zXZ\x00\x00\x04 cut here")
    (here / "weights.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 and no more")
    _write_wire(here / "model", here / "wire")
    (here / "prompts.yaml").write_text("template: chat\ninstructions: Be brief.\n")
    return here


def _write_wire(model: Path, folder: Path) -> None:
    """An untrained wire of the model, asked otherwise than the model's own files say."""
    lm = LM.load(str(model), prompts=PromptSettings(instruction="Be brief."))
    raw = fit(str(model), ENCODER, {str(model): {"kind": "native"}})["wire"]
    modules = LatentModules(LatentConfig.model_validate(raw), {str(model): lm}, lm)
    save(modules, ReaderConfig(), folder)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A hub cache that holds one model, and no network."""
    import huggingface_hub.constants

    cached = place / "hub" / "models--tiny--model"
    if not cached.exists():
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("abc123")
        (cached / "snapshots").mkdir()
        os.symlink(place / "model", cached / "snapshots" / "abc123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place / "hub"))


def study(place: Path, **changes: Any) -> str:
    model = str(place / "model")
    raw = {
        "name": "s",
        "model": model,
        "tasks": [{"name": "mine", "kind": "jsonl", "data": str(place / "rows.jsonl")}],
        "stages": {"text": {"kind": "evaluate", "arms": {"text": "text"}}},
        **changes,
    }
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return str(path)


EVAL = ["eval", "--model", "{place}/model", "--task", "jsonl", "--data", "{place}/rows.jsonl"]


def asked(*more: str, **changes: str) -> Callable[[Path], list[str]]:
    """`eval` on good rows, with more options, and with other values for the options it has."""

    def words(place: Path) -> list[str]:
        own = [word.format(place=place) for word in EVAL]
        for name, value in changes.items():
            own[own.index(f"--{name}") + 1] = value.format(place=place)
        return own + [word.format(place=place) for word in more]

    return words


def ran(**changes: Any) -> Callable[[Path], list[str]]:
    """`run` on a study with these changes."""

    def words(place: Path) -> list[str]:
        return ["run", study(place, **_filled(changes, place)), "--runs", str(place / "runs")]

    return words


def trained(**changes: Any) -> Callable[[Path], list[str]]:
    """`run` on a study with one stage that trains a wire of the tiny model."""
    model, adapters = "{place}/model", {"{place}/model": {"kind": "native"}}
    stage = fit(model, ENCODER, adapters, data={"kind": "file", "path": "{place}/rows.jsonl"})
    return ran(stages={"fit": {**stage, **changes}})


def _filled(value: Any, place: Path) -> Any:
    if isinstance(value, dict):
        return {_filled(key, place): _filled(each, place) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, place) for each in value]
    return value.format(place=place) if isinstance(value, str) else value


WRONG: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a chat with a model without a template": (asked("--chat"), "whose tokenizer has no chat template"),
    "a system text that the template leaves out": (
        asked("--chat", "--system", "Be brief.", model="{place}/chat"),
        "whose chat template leaves it out",
    ),
    "a prompt file with an unknown setting": (
        asked("--prompt-format", "{place}/prompts.yaml"),
        "instructions: expected some of template",
    ),
    "a wire trained with another prompt format": (
        trained(start_wire="{place}/wire"),
        "is read with another prompt format than it was trained with",
    ),
    "prompts for a model that the study has not": (
        ran(prompts={"{place}/other": {"instruction": "Be brief."}}),
        "prompts",
    ),
    "a field that is not in the data": (
        asked(task="file,answers=reply.text"),
        "reply",
    ),
    "a field of training data that is not there": (
        trained(data={"kind": "file", "path": "{place}/rows.jsonl", "fields": {"answers": "reply"}}),
        "reply",
    ),
    "rows that are nearly all unusable": (
        asked(task="file", data="{place}/empty_answers.jsonl"),
        "unusable",
    ),
    "instructions without any output": (
        trained(data={"kind": "file", "path": "{place}/alpaca.jsonl"}),
        "unusable",
    ),
    "a file that is not SQuAD's": (asked(task="squad", data="{place}/squad.json"), "squad.json"),
    "a compressed file that was cut off": (asked(task="file", data="{place}/cut.jsonl.xz"), "cut.jsonl.xz"),
    "a dataset that the hub's cache has not": (
        lambda place: ["eval", "--model", f"{place}/model", "--task", "hub:nobody/nothing,split=test"],
        "nobody/nothing",
    ),
    "a revision that does not exist": (asked(model="tiny/model@v9"), "v9"),
    "a revision of a local folder": (asked("--revision", "v9"), "which is a local model; expected a hub id"),
    "8 bits without the library": (asked("--bits", "8"), "bitsandbytes"),
    "bits that nothing rounds to": (asked("--bits", "3"), "bits: found 3, expected 4 or 8"),
    "a short name of a dtype": (asked("--dtype", "bf16"), "nearest: bfloat16"),
    "a cap on memory that this machine has not": (asked("--max-memory", "40GiB"), "this machine has none"),
    "a model file that is cut off": (asked(model="{place}/weights.gguf"), "weights.gguf"),
    "a wire of another model": (asked("--wire", "embedded:heron-4x"), "heron"),
    "a wire where there is none": (asked("--wire", "{place}/no-such-wire"), "no-such-wire"),
    "sampling below zero": (asked("--temperature", "-1"), "temperature"),
    "an answer of no tokens": (asked("--max-new-tokens", "0"), "max_new_tokens"),
    "a template whose files are not there": (
        lambda place: [
            *("run", "squad-wire", "--set", f"models.a={place}/model", "--set", f"models.b={place}/chat"),
            *("--set", f"files.train={place}/no.json", "--set", "prompts={}", "--runs", f"{place}/runs"),
        ],
        "expected a readable file",
    ),
    "a preset that is none": (
        lambda place: ["run", "squad-wire", "--preset", "tiny", "--runs", f"{place}/runs"],
        "smoke",
    ),
    "the best by a metric that is not measured": (trained(best="f1"), "generate_steps"),
    "8-bit optimizer states on a CPU": (trained(optimizer="adamw8bit"), "adamw8bit"),
    "a reader in 4 bits on a CPU": (ran(loading={"{place}/model": {"bits": 4}}), "bits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_end_in_one_sentence_and_leave_nothing(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = WRONG[case]
    command = words(place)
    before = sorted(place.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["latentwire", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, ""), err
    assert err.startswith("latentwire: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(place.rglob("*")) == before
