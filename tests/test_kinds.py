"""Classes from outside the package: a file beside the study is enough, and nothing is registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latentwire import kinds, wires
from latentwire.errors import UserError
from latentwire.studies import loading, plan
from latentwire.tasks import resolve
from latentwire.wires.latent.latent_config import LatentConfig, read_config
from tests.support.studies import model_folder
from tests.support.wire_studies import SOFT, fit

PRESS = '''from latentwire.wires import ScoredWire


class KeyNorm(ScoredWire):
    """Keeps the keys of smallest norm (Devoto et al., 2406.11430)."""

    def score(self, lm, prefix):
        return [-keys.norm(dim=-1) for keys in self.memory(lm, prefix).keys]
'''
PARTS = '''import torch
from torch import nn

from latentwire.lm.prompts import Example
from latentwire.training.data import ContextExamples, TrainingData
from latentwire.training.losses import summed_nats
from latentwire.training.objectives.term import Term
from latentwire.wires.latent.adapters import EmbeddingsConfig
from latentwire.wires.latent.encoders import Encoder
from latentwire.wires.latent.encoders.encoder import FixedCount
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import spread
from latentwire.wires.latent.translators import MlpConfig


class BagConfig(FixedCount):
    """A bag of bytes."""

    def build(self, source):
        return BagEncoder(self, source.device)


class BagEncoder(Encoder):
    def __init__(self, settings, device):
        super().__init__()
        self.shape = (settings.latents, settings.width)
        self.table = nn.EmbeddingBag(256, settings.latents * settings.width, device=device)

    def forward(self, contexts):
        device = self.table.weight.device
        rows = [torch.tensor(list(context.encode()) or [0], device=device) for context in contexts]
        vectors = torch.stack([self.table(row[None])[0].view(self.shape) for row in rows])
        length = torch.tensor([len(row) for row in rows], device=device)
        places = spread(length, self.shape[0])
        return Latents(valid=places >= 0, positions=places, length=length, vectors=vectors)


class Halved(Term):
    """Half the cross-entropy of the answer."""

    def loss(self, evidence):
        return 0.5 * summed_nats(evidence.lm, evidence.student)


class Capitals(TrainingData):
    """Two countries."""

    times: int = 8

    def contexts(self, split, start=0):
        for n in range(start, self.times):
            for country, city in (("Spain", "Madrid"), ("Peru", "Lima")):
                name = f"{split}-{country}-{n}"
                text, question = f"The capital of {country} is {city}.", f"What is the capital of {country}?"
                asked = {"context": text, "question": question, "answers": (city,)}
                yield ContextExamples([Example(id=name, group=name, **asked)])

    def identity(self, files):
        return {"times": self.times}


class Wide(EmbeddingsConfig):
    """Embeddings by another name."""


class Plain(MlpConfig):
    """A translator by another name."""


def capitals():
    from latentwire.tasks.base import Task

    data = Capitals(times=1)
    examples = [example for group in data.contexts("test") for example in group.examples]
    return Task(name="capitals", answer="span", source=lambda split: examples)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory that commands can import from; what is imported there is forgotten again."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    kinds.importable_here()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it: Python does not look into the current directory by itself."""
    call = [sys.executable, "-P", "-c", "from latentwire.cli import main; main()", *words]
    root = Path(kinds.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_newcomers_wire_of_fifteen_lines_is_evaluated_by_its_path(tmp_path):
    assert PRESS.count("\n") <= 15
    (tmp_path / "mypress.py").write_text(PRESS)
    done = command(
        tmp_path, "eval", "--model", "embedded:heron", "--task", "one_hop", "--limit", "20",
        "--wire", "mypress:KeyNorm,ratio=4", "--wire", "mypress:KeyNorm,ratio=4:zero", "--json", "numbers.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["metrics"]["mypress:KeyNorm,ratio=4"]["one_hop"]["exact_match"]["n"] == 20
    assert "mypress:KeyNorm,ratio=4:zero" in numbers["metrics"]


@pytest.mark.slow
def test_parts_from_outside_train_a_wire_and_its_checkpoint_is_loaded_by_their_paths(here):
    (here / "parts.py").write_text(PARTS)
    reader = str(model_folder("llama", 2048))
    bag = {"kind": "parts:BagConfig", "latents": 3, "width": 8}
    stage = fit(reader, bag, {reader: {**SOFT, "kind": "parts:Wide"}}, data={"kind": "parts:Capitals", "times": 4})
    stage["objectives"] = [{"kind": "parts:Halved"}, {"kind": "answer_ce"}]
    study = {
        "name": "outside",
        "model": reader,
        "tasks": ["parts:capitals"],
        "stages": {"fit": stage, "read": {"kind": "evaluate", "arms": {"wire": "stage:fit", "text": "text"}}},
    }
    (here / "study.yaml").write_text(yaml.safe_dump(study))
    done = command(here, "run", "study.yaml", "--preset", "smoke", "--set", "stages.fit.steps=2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((here / "runs" / "outside" / "summary.json").read_text())
    assert summary["stages"]["read"]["metrics"]["wire"]["capitals"]["exact_match"]["n"] == 2
    [checkpoint] = (here / "runs" / "outside" / "fit").glob("*/checkpoints/best")
    config = read_config(checkpoint)
    assert (config.encoder.kind, config.adapters[reader].kind) == ("parts:BagConfig", "parts:Wide")
    done = command(here, "eval", "--model", reader, "--task", "parts:capitals", "--wire", str(checkpoint))
    assert done.returncode == 0, done.stderr


def test_a_configuration_from_outside_comes_back_from_json_as_it_was(here):
    (here / "parts.py").write_text(PARTS)
    encoder = {"kind": "source", "translator": {"kind": "parts:Plain", "hidden": 7}}
    config = LatentConfig.model_validate(
        {"encoder": encoder, "adapters": {"embedded:heron": {"kind": "parts:Wide"}}}
    )
    assert config.encoder.translator.hidden == 7
    assert LatentConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump()["encoder"]["translator"]["kind"] == "parts:Plain"


def test_a_subclass_is_never_taken_for_its_parent(here):
    (here / "parts.py").write_text("from latentwire.wires.untrained import Nth\n\nclass Mine(Nth): ...\n")
    wire = wires.parse("parts:Mine,ratio=4")
    assert wire.label == "parts:Mine,ratio=4"
    assert wire != wires.parse("nth,ratio=4")
    assert type(wire)(ratio=4) == wire


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nowhere:Class", "there is no module 'nowhere'"),
        ("broken:Class", "module fails on import: ZeroDivisionError"),
        ("needy:Class", "whose module needs 'not_there_at_all'"),
        ("press:KeyNrm", "(nearest: KeyNorm) in press"),
        ("press:SIZE", "of type int, expected a class that derives from latentwire.wires.wire:Wire"),
        ("press:Other", "a class of another kind, expected a class that derives from"),
        ("press:Empty", "does not define score()"),
        ("press:Named", "whose kind is 'named'; expected a class that sets no kind of its own"),
        ("press:Nth", "whose kind is 'nth'"),
        ("press:KeyNorm,ratios=4", "(nearest: ratio)"),
        ("press:KeyNorm", "ratio or tokens is required"),
        ("press:KeyNorm,ratio=4:zeros", "(nearest: zero)"),
    ],
)
def test_what_is_no_wire_of_ones_own_is_refused_in_one_sentence(here, kind, said):
    (here / "broken.py").write_text("1 / 0\n")
    (here / "needy.py").write_text("import not_there_at_all\n")
    extra = (
        "\n\nSIZE = 1\n\n\nclass Other: ...\n\n\nclass Empty(ScoredWire): ...\n\n\n"
        "from typing import Literal\nfrom latentwire.wires.untrained import Nth\n\n\n"
        'class Named(KeyNorm):\n    kind: Literal["named"] = "named"\n'
    )
    (here / "press.py").write_text(PRESS + extra)
    with pytest.raises(UserError) as error:
        wires.parse(kind)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "parts:Bag"}, "encoder.kind: found 'parts:Bag', expected one of"),
        ({"kind": "parts:Halved"}, "encoder.kind: found 'parts:Halved', a class of another kind"),
        ({"kind": "sef"}, "(nearest: self), or package.module:Class of your own"),
        (
            {"kind": "parts:BagConfig", "latent": 2},
            "encoder.latent: found an unknown key, expected one of kind, latents, width (nearest: ",
        ),
        ({"kind": "parts:BagConfig", "latents": 0}, "encoder.latents: found 0"),
    ],
)
def test_a_wrong_part_is_named_by_its_place_in_the_study(here, change, said):
    (here / "parts.py").write_text(PARTS)
    reader = str(model_folder("llama", 2048))
    stages = {"fit": fit(reader, change, {reader: SOFT})}
    study = {"name": "outside", "model": reader, "tasks": ["one_hop"], "stages": stages}
    (here / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(UserError) as error:
        loading.load("study.yaml")
    assert said in str(error.value)


def test_a_stage_is_another_once_the_code_of_its_own_class_changes(here):
    (here / "mine.py").write_text(PRESS)
    reader = str(model_folder("llama", 2048))
    arms = {"kind": "evaluate", "arms": {"mine": "mine:KeyNorm,ratio=4"}}
    stages = {"mine": arms, "text": {"kind": "evaluate", "arms": {"text": "text"}}}
    study = {"name": "outside", "model": reader, "tasks": ["one_hop"], "limit": 2, "stages": stages}
    (here / "study.yaml").write_text(yaml.safe_dump(study))
    before = plan.make(loading.load("study.yaml")).stages
    (here / "mine.py").write_text(PRESS + "# another\n")
    after = plan.make(loading.load("study.yaml")).stages
    assert before["mine"].identity != after["mine"].identity
    assert before["text"].identity == after["text"].identity


def test_a_task_is_a_function_or_an_object_of_ones_own(here):
    (here / "parts.py").write_text(PARTS + "\nMADE = capitals()\nNUMBER = 3\n")
    for path in ("parts:capitals", "parts:MADE"):
        [task] = resolve([path], None)
        assert [example.answers for example in task.examples("test")] == [("Madrid",), ("Lima",)]
    with pytest.raises(UserError, match="found 'parts:NUMBER' of type int, expected a Task"):
        resolve(["parts:NUMBER"], None)
    with pytest.raises(UserError, match=r"task: found 'parts:capital', expected one of .*nearest: capitals"):
        resolve(["parts:capital"], None)


def test_every_kind_of_wire_says_what_it_is_and_what_it_takes():
    text = wires.described()
    for name, wire in wires.KINDS.items():
        assert f"\n{name}" in f"\n{text}"
        assert wire.summary().endswith(".")
        assert wire.summary() in text
    assert "nth[,ratio=INT][,tokens=INT][,gain=FACTOR[xSTEPS+...]][,budget=uniform|head]" in text
    assert "source=MODEL" in text


def test_the_help_shows_the_kinds_as_they_describe_themselves():
    """Kept in a file, so that `--help` need not wait for PyTorch; on failure write `wires.described()` there."""
    kept = Path(wires.__file__).parent / "kinds.txt"
    assert kept.read_text(encoding="utf-8") == wires.described()
