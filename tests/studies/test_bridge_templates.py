"""The bridge templates run, on tiny random models of their families, from their files to their summaries."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import yaml

from latentwire import studies
from latentwire.errors import UserError
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.studies.stages import Evaluate, TrainWire
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.select import Anchors
from latentwire.wires.latent.translators import DitConfig
from tests.support.models import tiny_lm

SMALL = {
    "steps": 2,
    "passages": 2,
    "contexts": 4,
    "questions": 2,
    "eval_steps": 2,
    "eval_samples": 2,
    "samples": 0,
    "warmup_steps": 0,
    "precision": "fp32",
}


@cache
def folder(family: str) -> str:
    path = Path(mkdtemp(prefix="latentwire-tests-")) / family
    window = {"sliding_window": None} if family == "mistral" else {}
    # Every third token ends a text: what a random model says would go on to the limit.
    tiny_lm(family, max_position_embeddings=2048, eos_token_id=list(range(2, 320, 3)), **window).save(path)
    return str(path)


def small(template: str, source: str, target: str, *more: str) -> list[str]:
    """Changes that make a template small, and its models these."""
    changes = [f"models.source={source}", f"models.target={target}", *more]
    whole = yaml.safe_load(studies.templates()[template])["stages"]
    # Of a swept stage, which is changed as a whole, the last point stands for all.
    stages = {point.split("-")[0]: stage for point, stage in loading.load(template).stages.items()}
    assert set(stages) == set(whole)
    for name, stage in stages.items():
        if isinstance(stage, TrainWire):
            changes += [f"stages.{name}.{key}={value}" for key, value in SMALL.items()]
            wire = f"stages.{name}.wire"
            made = stage.wire.encoder
            encoder = {"self": "rank=2", "source": "width=16", "constant": "tokens=8"}[made.kind]
            changes.append(f"{wire}.encoder.{encoder}")
            if isinstance(made, SourceConfig) and isinstance(made.translator, DitConfig):
                changes += [f"{wire}.encoder.translator.{key}" for key in ("hidden=8", "layers=1", "heads=2")]
                changes.append(f"{wire}.encoder.width=32")  # of the readers' embeddings
            if getattr(stage.wire.encoder, "select", Anchors()).slots:
                changes.append(f"{wire}.encoder.select.slots=8")
            if next(iter(stage.wire.adapters.values())).kind != "native":
                reader = "source" if name == "swap" else "target"
                changes.append(f"{wire}.adapters.${reader}.hidden=8")
    return changes


def problems(path: Path, count: int) -> Path:
    rows = [
        {
            "context": f"Ada {n} has {n + 3} apples and Bob {n} has {n}.",
            "question": "How many? Write #### and the number.",
            "answers": [f"{n + 3} + {n} = <<{n + 3}+{n}={2 * n + 3}>>{2 * n + 3}\n#### {2 * n + 3}"],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def paragraphs(path: Path, count: int) -> Path:
    rows = [
        {
            "_id": str(n),
            "question": f"Where does Ada {n} live?",
            "answer": f"Town{n}",
            "context": [[f"Ada {n}", [f"Ada {n} lives in Town{n}.", " It is old."]], ["Heron", ["It stood."]]],
        }
        for n in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def run(tmp_path: Path, template: str, changes: list[str]) -> runner.Carried:
    carried = runner.run(loading.load(template, changes), tmp_path / "runs", Log())
    assert {stage["status"] for stage in carried.summary["stages"].values()} == {"done"}
    for name, stage in carried.plan.study.stages.items():
        if isinstance(stage, Evaluate):
            assert set(carried.summary["stages"][name]["metrics"]) == set(stage.arms)
    names = [each["name"] for each in carried.summary["comparisons"]]
    assert names == [each.name for each in carried.plan.study.comparisons]
    assert any(each["primary"] for each in carried.summary["derived"]["comparisons"].values())
    assert set(carried.summary["derived"]["oracles"]) == {"alone", "together"}
    assert carried.summary["derived"]["effects"]
    return carried


@pytest.mark.slow
@pytest.mark.parametrize(("template", "task"), [("bridge", "reverse"), ("bridge-help", "sums")])
def test_a_bridge_of_the_world_runs(template: str, task: str, tmp_path: Path) -> None:
    changes = small(template, folder("qwen3"), folder("llama"), f"tasks=[{task}]", "limit=8")
    carried = run(tmp_path, template, changes)
    sizes = carried.summary["derived"]["evaluations"]["bridged"]["sizes"]
    alike = ["tuned", "self", *(["frozen"] if template == "bridge" else [])]
    assert len({str(sizes[arm][task]["latents"]) for arm in alike}) == 1
    assert sizes["relay_asked"][task]["bytes"] > 0


@pytest.mark.slow
def test_a_bridge_on_gsm8k_runs_and_counts_answers_without_a_number(tmp_path: Path) -> None:
    template, source, target = "bridge-gsm8k", "mistral", "llama"
    files = problems(tmp_path / "train.jsonl", 40), problems(tmp_path / "test.jsonl", 6)
    data = [f"files.train={files[0]}", f"files.test={files[1]}"]
    carried = run(tmp_path, template, small(template, folder(source), folder(target), *data))
    metrics = carried.summary["stages"]["bridged"]["metrics"]["bridged"]["gsm8k"]
    invalid = carried.summary["derived"]["invalid"]["bridged/bridged"]["gsm8k"]
    assert metrics["unreadable"]["value"] == invalid["value"] == 1.0  # a random model writes no ####
    assert "| bridged/bridged | 1.000" in (carried.folder / "summary.md").read_text()
    # The ablations differ: the earlier ones were repeats of one configuration.
    assert carried.summary["derived"]["repeats"] == []
    grid = [name for name in carried.runs if name.startswith("ablation-")]
    assert grid == ["ablation-all", "ablation-kl", "ablation-kl_prompt", "ablation-rotated"]
    objectives = {name: carried.runs[name].record.configuration["objectives"] for name in grid}
    assert [len(of) for of in objectives.values()] == [4, 2, 3, 4]


@pytest.mark.slow
def test_a_bridge_on_hotpotqa_runs(tmp_path: Path) -> None:
    template, source, target = "bridge-hotpotqa", "qwen2", "qwen3"
    files = paragraphs(tmp_path / "train.json", 40), paragraphs(tmp_path / "dev.json", 6)
    data = [f"files.train={files[0]}", f"files.test={files[1]}"]
    carried = run(tmp_path, template, small(template, folder(source), folder(target), *data))
    sizes = carried.summary["derived"]["evaluations"]["bridged"]["sizes"]
    assert sizes["bridged"]["hotpotqa"]["latents"] == sizes["learned_prefix"]["hotpotqa"]["latents"] == 8


@pytest.mark.parametrize("template", [name for name in studies.templates() if name.startswith("bridge")])
def test_exchanging_source_and_target_is_one_line(template: str, tmp_path: Path) -> None:
    text = studies.templates()[template]
    (line,) = (each for each in text.splitlines() if each.startswith("models: "))
    models = yaml.safe_load(line)["models"]
    path = tmp_path / "study.yaml"
    path.write_text(
        text.replace(line, f"models: {json.dumps(dict(zip(models, reversed(models.values()), strict=True)))}")
    )
    one, other = loading.load(template), loading.load(str(path))
    there, back = models["source"], models["target"]

    def exchanged(value: Any) -> Any:
        return json.loads(
            json.dumps(value).replace(there, "<there>").replace(back, there).replace("<there>", back)
        )

    assert exchanged(one.model_dump(mode="json")) == other.model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("models=[a]", "models: found .* expected a mapping of names to models"),
        ("model=$targt", r"model: found '\$targt', expected one of source, target \(nearest: target\)"),
        ("stages.tuned.wire.adapters.$reader=x", "stages.tuned.wire.adapters: found '\\$reader'"),
    ],
)
def test_a_name_that_stands_for_no_model_is_told(change: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        loading.load("bridge", [change])


def test_a_change_of_one_stage_is_of_no_other_that_was_written_like_it() -> None:
    made = loading.load("bridge", ["stages.tuned.data.tiers=[one_hop]"])
    tiers = {name: stage.data.tiers for name, stage in made.stages.items() if isinstance(stage, TrainWire)}
    assert tiers.pop("tuned") == ("one_hop",)
    assert set(tiers.values()) == {("one_hop", "reverse")}
