"""What studies of two models need: a wire that follows an earlier stage's, and the oracle of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.eval_report import of_questions
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.evaluation.statistics import estimate
from latentwire.runs.log import Log
from latentwire.studies import loading, plan, runner
from latentwire.studies.spec import Study
from latentwire.studies.stages import TrainWire
from latentwire.training.objectives import Imitate
from tests.support.wire_studies import HERON, WREN, encoder, fit

PREFIX = {"kind": "deep_prefix", "hidden": 8}
OWN = fit(HERON, encoder(ratio=5), {HERON: {"kind": "native"}})
BRIDGE = fit(
    WREN,
    encoder(ratio=5, align=HERON, gives="both"),
    {HERON: PREFIX},
    log_steps=1,
    objectives=[{"kind": "answer_ce", "weight": 0.5}, {"kind": "imitate", "wire": "stage:own"}],
)
STUDY: dict[str, Any] = {
    "name": "bridges",
    "model": HERON,
    "tasks": ["one_hop", "choices/home"],
    "limit": 6,
    "stages": {
        "bridge": BRIDGE,
        "own": OWN,
        "target": {"kind": "evaluate", "arms": {"text": "text", "none": "none"}},
        "source": {"kind": "evaluate", "model": WREN, "arms": {"text": "text", "none": "none"}},
        "bridged": {
            "kind": "evaluate",
            "arms": {
                "bridged": "stage:bridge",
                "relay": f"relay,ratio=5,source={WREN}",
                "told": f"relay,ratio=5,source={WREN},question=true",
            },
        },
    },
    "effects": {"baseline": "source/text", "retained": ["target/text", "bridged/bridged"]},
    "oracles": {
        "either": ["source/text", "target/text"],
        "all": ["source/text", "target/text", "bridged/bridged"],
    },
    "comparisons": [
        {"name": "G", "a": "bridged/bridged", "b": "target/none", "primary": True},
        {"name": "headroom", "a": "oracles/either", "b": "target/text"},
        {"name": "models", "task": "one_hop", "metric": "f1", "a": "source/text", "b": "target/text"},
    ],
}


def made(**changes: Any) -> Study:
    return Study.model_validate(loading._with_shared({**STUDY, **changes}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    return runner.run(made(), tmp_path_factory.mktemp("runs"), Log())


@pytest.mark.slow
def test_what_is_imitated_is_trained_first_and_is_a_parent(done: runner.Carried) -> None:
    assert list(done.plan.stages)[:2] == ["own", "bridge"]
    parents = done.runs["bridge"].record.parents
    assert {name: parent.run for name, parent in parents.items()} == {"own": done.runs["own"].record.run}
    assert "imitate" in (done.runs["bridge"].folder / "diagnostics.jsonl").read_text()


def test_the_objective_follows_the_wire_that_the_stage_trained(done: runner.Carried, tmp_path: Path) -> None:
    stage = made().stages["bridge"]
    assert isinstance(stage, TrainWire)
    assert stage.needs() == ["own"]
    (followed,) = (e for e in stage.settings(lambda name: tmp_path / name).objectives if isinstance(e, Imitate))
    assert followed.wire == str(tmp_path / "own")


def test_another_wire_to_imitate_is_another_identity() -> None:
    other = {**STUDY["stages"], "own": {**OWN, "learning_rate": 1e-4}}
    one, two = plan.make(made()), plan.make(made(stages=other))
    changed = {name for name in one.stages if one.stages[name].identity != two.stages[name].identity}
    assert changed == {"own", "bridge", "bridged"}


def test_an_oracle_is_the_best_of_its_readings_with_an_interval(done: runner.Carried) -> None:
    def scores(stage: str, arm: str) -> dict[tuple[str, str], float]:
        found = read_outcomes(done.runs[stage].folder / "outcomes.jsonl")
        return {(o.task, o.id): next(iter(o.metrics.values())) for o in found if o.arm == arm}

    source, target = scores("source", "text"), scores("target", "text")
    oracle = done.summary["derived"]["oracles"]["either"]
    assert oracle["of"] == ["source/text", "target/text"]
    home = oracle["metrics"]["choices/home"]["acc"]
    asked = [key for key in source if key[0] == "choices/home"]
    assert home["value"] == pytest.approx(sum(max(source[key], target[key]) for key in asked) / len(asked))
    assert home["low"] <= home["value"] <= home["high"]
    assert home["n"] == 6
    everything = done.summary["derived"]["oracles"]["all"]["metrics"]["macro"]["primary"]["value"]
    assert everything >= oracle["metrics"]["macro"]["primary"]["value"]


def test_the_share_of_invalid_answers_is_told(done: runner.Carried) -> None:
    found = done.summary["derived"]["invalid"]
    assert {reading: list(of) for reading, of in found.items()} == {
        f"{stage}/{arm}": ["one_hop"] for stage, arms in done.summary["stages"].items() for arm in arms["metrics"]
    }
    for reading, of in found.items():
        stage, arm = reading.split("/")
        outcomes = read_outcomes(done.runs[stage].folder / "outcomes.jsonl")
        errors = [o.error for o in outcomes if o.arm == arm and o.task == "one_hop"]
        assert of["one_hop"]["value"] == pytest.approx(errors.count("unreadable") / len(errors))
    assert "## Invalid answers" in (done.folder / "summary.md").read_text()


def test_readings_of_two_models_are_compared_and_derived_from(done: runner.Carried) -> None:
    compared = {each["name"]: each for each in done.summary["comparisons"]}
    assert set(compared) == {"G", "headroom", "models"}
    assert compared["headroom"]["difference"] >= 0
    further = done.summary["derived"]["comparisons"]
    assert [further[name]["single_seed"] for name in ("G", "headroom", "models")] == [True, False, False]
    outcomes = read_outcomes(done.runs["source"].folder / "outcomes.jsonl")
    text = estimate([o for o in outcomes if o.arm == "text" and o.task == "choices/home"]).value
    found = {(e["of"], e["task"]): e for e in done.summary["derived"]["effects"]}
    raw = found["target/text", "choices/home"]["raw"]["value"]
    assert raw is None or raw * text == pytest.approx(
        done.summary["stages"]["target"]["metrics"]["text"]["choices/home"]["acc"]["value"]
    )


def test_the_tables_show_the_oracles_and_who_saw_the_question(done: runner.Carried) -> None:
    told = (done.folder / "summary.md").read_text()
    assert "## Oracles" in told
    assert "| either | source/text, target/text |" in told
    assert "The question was in sight when bridged/told was encoded" in told
    assert of_questions([]) not in told


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"stages.bridge.objectives.1.wire": "stage:onw"},
            "objectives.1.wire: found 'onw', expected a wire stage",
        ),
        ({"stages.bridge.objectives.1.wire": "stage:bridge"}, "objectives: found the stage itself"),
        ({"stages.own.objectives.1": {"kind": "imitate", "wire": "stage:bridge"}}, "objectives: found a circle"),
        ({"stages.own.wire.adapters": {WREN: {"kind": "native"}}}, "cannot read, expected one of its own"),
        ({"oracles.either.0": "sauce/text"}, "oracles.either.0: found 'sauce', expected an evaluate stage"),
        ({"oracles.either": ["source/text"]}, "oracles.either: found"),
        ({"comparisons.1.a": "oracles/eihter"}, "nearest: either"),
        ({"effects.retained.0": "oracles/either"}, "expected an evaluate stage"),
        ({"stages.oracles": {"kind": "evaluate", "arms": {"text": "text"}}}, "expected another name"),
    ],
)
def test_what_is_not_there_is_told_in_one_sentence(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    own = {**OWN, "objectives": [{"kind": "answer_ce"}, {"kind": "distill"}]}
    file.write_text(json.dumps({**STUDY, "stages": {**STUDY["stages"], "own": own}}))
    with pytest.raises(UserError, match=expected) as error:
        loading.load(str(file), [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    assert "\n" not in str(error.value)
