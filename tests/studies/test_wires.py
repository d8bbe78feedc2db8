"""Studies that train a wire and read over it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.runs.store import runs
from latentwire.studies import loading, plan, runner, summary_tables
from latentwire.studies.spec import Study
from latentwire.studies.stages import Evaluate
from latentwire.training.wire import train
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import CONFIG, WEIGHTS
from tests.support.wire_studies import FIT, STUDY


def made(**changes: Any) -> Study:
    return Study.model_validate(loading._with_shared({**STUDY, **changes}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Carried]:
    root = tmp_path_factory.mktemp("runs")
    return root, runner.run(made(), root, Log(), stages=["latent"])


@pytest.mark.slow
def test_an_evaluation_brings_the_wire_that_it_reads_over(done: tuple[Path, runner.Carried]) -> None:
    _, carried = done
    assert set(carried.runs) == {"fit", "latent"}
    wire = carried.runs["fit"].folder / "checkpoints" / "best"
    assert {file.name for file in wire.iterdir()} == {CONFIG, WEIGHTS}
    assert set(carried.runs["latent"].record.parents) == {"fit"}
    assert set(carried.summary["stages"]["latent"]["metrics"]) == {"latent", "deranged", "4bit"}


@pytest.mark.slow
def test_the_gap_closed_is_derived_with_a_comparison(done: tuple[Path, runner.Carried]) -> None:
    root, before = done
    carried = runner.run(made(), root, Log())
    assert carried.runs["fit"].record.run == before.runs["fit"].record.run  # done already
    effects = {(each["effect"], each["of"]): each for each in carried.summary["derived"]["effects"]}
    text = carried.summary["stages"]["baseline"]["metrics"]["text"]["one_hop"]["exact_match"]["value"]
    nth = carried.summary["stages"]["baseline"]["metrics"]["nth"]["one_hop"]["exact_match"]["value"]
    found = effects["retention", "baseline/nth"]
    assert found["raw"]["value"] == pytest.approx(nth / text)
    assert found["above_floor"]["value"] == pytest.approx((nth - found["floor"]) / (text - found["floor"]))
    assert [each["name"] for each in carried.summary["comparisons"]] == ["against nth"]
    assert "single_seed" in json.dumps(carried.summary["derived"]["comparisons"])


def test_a_trained_wire_is_read_from_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs@home, 12:30" / "wire:zero"
    shutil.copytree(models.wire_folder("heron-4x"), folder)
    texts = {"a": "stage:fit", "b": "stage:fit:deranged", "c": "stage:fit:4bit", "d": "none"}
    read = Evaluate(kind="evaluate", arms=texts).read(lambda stage: folder)
    lm = LM.load("embedded:heron")
    latents = [arm.bind(lm).wire for arm in read[:3]]
    assert all(isinstance(wire, Latent) and wire.path == str(folder) for wire in latents)
    assert [wire.control for wire in latents if isinstance(wire, Latent)] == [None, None, "4bit"]
    assert [(arm.variant, arm.reader) for arm in read] == [
        (None, None),
        ("deranged", None),
        (None, None),
        (None, None),
    ]
    assert len({arm.label for arm in read}) == 4


def test_another_wire_is_another_identity_for_what_reads_over_it(done: tuple[Path, runner.Carried]) -> None:
    stages = {**STUDY["stages"], "fit": {**FIT, "learning_rate": 1e-4}}
    one, two = plan.make(made()), plan.make(made(stages=stages))
    changed = {name for name in one.stages if one.stages[name].identity != two.stages[name].identity}
    assert changed == {"fit", "latent"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            {"kind": "evaluate", "arms": {"latent": "stage:fitt"}},
            "expected a wire stage: one of fit (nearest: fit)",
        ),
        ({"kind": "evaluate", "start_from": "fit", "arms": {"t": "text"}}, "expected a finetune stage"),
        ({**FIT, "start_from": "baseline"}, "found 'baseline'"),
        ({**FIT, "objectives": []}, "objectives"),
    ],
)
def test_a_stage_that_fits_no_other_is_told_in_one_sentence(
    stage: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps({**STUDY, "stages": {**STUDY["stages"], "odd": stage}}))
    with pytest.raises(UserError, match=expected.replace("(", r"\(").replace(")", r"\)")):
        loading.load(str(file))


def test_an_arm_over_a_wire_that_training_never_improved_is_marked(done: tuple[Path, runner.Carried]) -> None:
    carried = done[1]
    summary = copy.deepcopy(carried.summary)
    told = "WARNING: fit was best at step 0"
    summary["derived"]["finetunings"]["fit"]["best_step"] = 1
    assert told not in summary_tables.markdown(carried.plan.study, carried.runs, summary)
    summary["derived"]["finetunings"]["fit"]["best_step"] = 0
    assert told in summary_tables.markdown(carried.plan.study, carried.runs, summary)


@pytest.mark.slow
def test_no_arm_reads_over_a_wire_whose_training_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise RuntimeError("step 3: the loss is not a finite number")

    monkeypatch.setattr(train, "train_wire", diverge)
    for _ in range(2):  # a second call goes on with the failed stage, and does not start the next
        with pytest.raises(runner.StageFailed, match="fit failed with RuntimeError: step 3"):
            runner.run(made(), tmp_path, Log(), stages=["latent"])
        assert {run.record.stage: run.status for run in runs(tmp_path)} == {"fit": "failed"}
    summary = json.loads((tmp_path / "wired" / "summary.json").read_text())
    assert summary["stages"]["fit"]["status"] == "failed"
    assert summary["stages"]["latent"] == {"run": None, "status": "not run", "metrics": {}}


def test_the_template_is_a_study() -> None:
    found = loading.load("latent-wire")
    assert found.stages["latent"].needs() == ["fit", "constant"]


def test_a_wire_from_elsewhere_belongs_to_what_a_stage_is(tmp_path: Path) -> None:
    def identity(folder: Path) -> str:
        stages = {"only": {"kind": "evaluate", "arms": {"latent": str(folder)}}}
        return plan.make(made(stages=stages, effects=None, comparisons=[])).stages["only"].identity

    for file in models.wire_folder("heron-4x").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = identity(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes() + b" ")
    assert identity(tmp_path) != before


@pytest.mark.parametrize(
    ("arms", "extra", "expected"),
    [
        ({"t": "text", "u": "text@embedded:wren"}, {}, "beside the same arm without a reader"),
        ({"t": "stage:fit@embedded:heron"}, {}, "expected a reader of fit: embedded:wren"),
        ({"t": "stage:fit@"}, {}, "expected a model after '@'"),
        ({"t": "stage:fit:derangd"}, {}, "nearest: deranged"),
        ({"t": "stage:fit"}, {"model": "embedded:heron"}, "expected a reader of fit: embedded:wren"),
    ],
)
def test_who_reads_what_is_checked_before_anything_runs(
    arms: dict[str, str], extra: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    stages = {**STUDY["stages"], "odd": {"kind": "evaluate", "arms": arms, **extra}}
    file.write_text(json.dumps({**STUDY, "stages": stages}))
    with pytest.raises(UserError, match=expected):
        loading.load(str(file))
