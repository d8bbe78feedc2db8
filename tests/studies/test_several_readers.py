"""One wire, two readers: each arm names who reads, and their joint answer, oracle and agreement are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.evaluation.metrics import normalize
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.several_readers import evaluate_readers
from latentwire.lm.model import LM
from latentwire.runs.log import Log
from latentwire.studies import loading, plan, runner, summary_tables
from latentwire.studies.stages import evaluate as evaluate_stage
from latentwire.studies.stages.study_arms import read_arm
from latentwire.tasks import resolve
from tests.support.studies import written
from tests.support.wire_studies import HERON, SOFT, WREN, encoder, fit

BOTH = {"heron": "stage:fit", "wren": f"stage:fit@{WREN}", "text": "text", "text_wren": f"text@{WREN}"}
STUDY: dict[str, Any] = {
    "name": "two",
    "model": HERON,
    "tasks": ["one_hop", "choices/home"],
    "limit": 12,
    "stages": {
        "fit": fit(HERON, encoder(gives="vectors"), {HERON: SOFT, WREN: SOFT}),
        "both": {"kind": "evaluate", "arms": BOTH},
    },
    "comparisons": [
        {"name": "joint", "a": "both/joint(heron + wren)", "b": "both/heron"},
        {"name": "oracle", "a": "both/union(text + text_wren)", "b": "both/text"},
    ],
    "effects": {"baseline": "both/text", "retained": ["both/joint(heron + wren)"]},
}


def study(folder: Path, **changes: Any) -> Any:
    return loading.load(str(written(folder, {**STUDY, **changes})))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    folder = tmp_path_factory.mktemp("two")
    return runner.run(study(folder), folder / "runs", Log())


def by_arm(carried: runner.Carried) -> dict[str, dict[tuple[str, str], Outcome]]:
    arms: dict[str, dict[tuple[str, str], Outcome]] = {}
    for outcome in read_outcomes(carried.runs["both"].folder / "outcomes.jsonl"):
        arms.setdefault(outcome.arm, {})[outcome.task, outcome.id] = outcome
    return arms


def primary(outcome: Outcome) -> float:
    return next(iter(outcome.metrics.values()))


def test_readers_of_one_wire_get_their_oracle_and_their_joint_answer(done: runner.Carried) -> None:
    arms = by_arm(done)
    derived = ["union(heron + wren)", "joint(heron + wren)", "union(text + text_wren)", "joint(text + text_wren)"]
    assert sorted(arms) == sorted([*BOTH, *derived])
    for one, two, union, joint in (("heron", "wren", *derived[:2]), ("text", "text_wren", *derived[2:])):
        for key, best in arms[union].items():
            assert primary(best) == max(primary(arms[one][key]), primary(arms[two][key]))
        for (task, id_), decided in arms[joint].items():
            if task == "one_hop":
                assert decided.prediction in (arms[one][task, id_].prediction, arms[two][task, id_].prediction)
    assert [each["name"] for each in done.summary["comparisons"]] == ["joint", "oracle"]
    assert {each["of"] for each in done.summary["derived"]["effects"]} == {"both/joint(heron + wren)"}
    assert done.summary["derived"]["comparisons"]["joint"]["single_seed"]


def test_agreement_is_the_share_of_equal_answers(done: runner.Carried) -> None:
    arms, found = by_arm(done), done.summary["derived"]["agreement"]
    assert list(found) == ["both/heron + both/wren", "both/text + both/text_wren"]
    for task in STUDY["tasks"]:
        said = [
            [normalize(o.prediction) for (of, _), o in arms[arm].items() if of == task]
            for arm in ("text", "text_wren")
        ]
        alike = [one == two for one, two in zip(*said, strict=True)]
        assert found["both/text + both/text_wren"][task]["value"] == pytest.approx(sum(alike) / len(alike))
        assert found["both/text + both/text_wren"][task]["n"] == 12
    assert "## Agreement" in summary_tables.markdown(done.plan.study, done.runs, done.summary)


def test_a_study_says_of_two_readers_what_eval_says(done: runner.Carried) -> None:
    parsed = [read_arm(text, HERON, None) for text in ("text", f"text@{WREN}")]
    arms = [arm for arm in parsed if arm is not None]
    readers: dict[str | None, LM] = {None: LM.load(HERON), WREN: LM.load(WREN)}
    wanted = evaluate_readers(readers, resolve(STUDY["tasks"], None), arms, limit=12).outcomes
    found = by_arm(done)
    names = dict(zip(dict.fromkeys(each.arm for each in wanted), ("text", "text_wren"), strict=False))
    for outcome in wanted:
        if outcome.arm in names:
            ours = found[names[outcome.arm]][outcome.task, outcome.id]
            assert (ours.prediction, ours.metrics) == (outcome.prediction, pytest.approx(outcome.metrics))
    joint = {
        each.id: each.prediction for each in wanted if each.arm.startswith("joint(") and each.task == "one_hop"
    }
    assert joint == {
        id_: o.prediction for (task, id_), o in found["joint(text + text_wren)"].items() if task == "one_hop"
    }


def test_a_second_reader_belongs_to_what_a_stage_is(done: runner.Carried, tmp_path: Path) -> None:
    stages = {"both": {"kind": "evaluate", "arms": {"text": "text"}}}
    alone = plan.make(study(tmp_path, stages=stages, comparisons=[], effects=None)).stages["both"]
    both = done.plan.stages["both"]
    assert f"reader {WREN}" in both.inputs
    assert f"reader {WREN}" not in alone.inputs
    assert f"reader {WREN}" in done.runs["both"].record.inputs


def test_interrupted_between_two_tasks_it_comes_to_the_same(
    done: runner.Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = evaluate_stage.evaluate_readers, 0
    stages = {"both": {"kind": "evaluate", "arms": {"text": "text", "text_wren": f"text@{WREN}"}}}
    small = study(tmp_path, stages=stages, comparisons=[], effects=None)

    def interrupted(*words: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return evaluate(*words, **options)

    monkeypatch.setattr(evaluate_stage, "evaluate_readers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(small, tmp_path / "runs", Log())
    monkeypatch.undo()
    resumed = runner.run(small, tmp_path / "runs", Log())
    whole, again = by_arm(done), by_arm(resumed)
    assert set(again) == {"text", "text_wren", "union(text + text_wren)", "joint(text + text_wren)"}
    for arm, outcomes in again.items():
        assert {key: o.prediction for key, o in outcomes.items()} == {
            k: o.prediction for k, o in whole[arm].items()
        }
    results = [
        json.loads((each.runs["both"].folder / "run.json").read_text())["results"] for each in (done, resumed)
    ]
    assert results[0]["floors"] == results[1]["floors"]
    assert results[0]["unstable"] == results[1]["unstable"]
