"""`seeds:` carries every training out with each seed, and compares over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.evaluation.pooled import compare_pooled
from latentwire.evaluation.resolution import planned
from latentwire.runs.log import Log
from latentwire.runs.run_comparison import compare_runs
from latentwire.studies import loading, runner
from latentwire.studies.runner import Carried
from tests.support.studies import MASKED, small_study, written


def seeded(**changes: Any) -> dict[str, Any]:
    study = small_study(tasks=["one_hop"], limit=6, seeds=[3, 5], gates=[])
    study["finetuning"] |= {"steps": 2, "learning_rate": 0.01}
    study["comparisons"] = [
        {"name": "gain", "task": "one_hop", "a": "ablated_after/text", "b": "ablated/text", "primary": True},
        {"name": "side", "task": "one_hop", "a": "plain_after/text", "b": "ablated_after/text"},
        {"name": "damage", "task": "one_hop", "a": "ablated/text", "b": "baseline/text"},
    ]
    return study | changes


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    folder = tmp_path_factory.mktemp("seeded")
    study = loading.load(str(written(folder, seeded())))
    return runner.run(study, folder / "runs", Log())


@pytest.mark.slow
def test_trainings_and_what_needs_them_are_carried_out_with_each_seed(carried: Carried) -> None:
    assert list(carried.summary["stages"]) == [
        "baseline",
        "ablated",
        *(f"{name}-seed{seed}" for name in ("prefix_ft", "ablated_after", "plain_after") for seed in (3, 5)),
    ]
    for seed in (3, 5):
        assert carried.runs[f"prefix_ft-seed{seed}"].record.seeds == {"training": seed}
        assert list(carried.runs[f"plain_after-seed{seed}"].record.parents) == [f"prefix_ft-seed{seed}"]


def test_comparisons_and_effects_are_over_all_seeds(carried: Carried) -> None:
    derived = carried.summary["derived"]
    assert {name: each["seeds"] for name, each in derived["comparisons"].items()} == {
        "gain": [2, 1],
        "side": [2, 2],
        "damage": [1, 1],
    }
    assert not any(each["single_seed"] for each in derived["comparisons"].values())

    def reading(stage: str) -> list[Any]:
        return [o for o in read_outcomes(carried.runs[stage].folder / "outcomes.jsonl") if o.arm == "text"]

    after = {str(seed): reading(f"ablated_after-seed{seed}") for seed in (3, 5)}
    expected = compare_pooled(after, {"": reading("ablated")})
    gain = next(each for each in carried.summary["comparisons"] if each["name"] == "gain")
    assert (gain["difference"], gain["low"], gain["high"]) == (expected.difference, expected.low, expected.high)
    (found,) = compare_runs(carried.folder.parent, ["small/ablated_after:text", "small/ablated:text"])
    assert found.result.difference == expected.difference

    effects = {(each["effect"], each["of"]) for each in derived["effects"]}
    assert {("gain", "ablated_after/text"), ("side_effect", "plain_after/text")} <= effects
    pooled = derived["pooled"]["ablated_after/text"]["one_hop"]
    assert pooled["seeds"] == 2
    assert pooled["value"] == pytest.approx(sum(pooled["by_seed"].values()) / 2)
    text = (carried.folder / "summary.md").read_text()
    assert "## Over seeds" in text
    assert "Trainings have the seeds 3, 5; comparisons of them are over all seeds." in text
    json.dumps(carried.summary, allow_nan=False)


def test_a_stage_is_named_without_its_seeds(carried: Carried, tmp_path: Path) -> None:
    plan = carried.plan
    assert plan.needed(["ablated_after"]) == [
        f"{name}-seed{seed}" for name in ("prefix_ft", "ablated_after") for seed in (3, 5)
    ]
    assert plan.needed(["ablated_after-seed5"]) == ["prefix_ft-seed5", "ablated_after-seed5"]


def test_arms_over_a_wire_follow_its_seed() -> None:
    from latentwire.studies.seeding import replicated

    raw = {
        "seeds": [0, 1],
        "stages": {
            "fit": {"kind": "wire"},
            "more": {
                "kind": "wire",
                "start_from": "fit",
                "objectives": [{"kind": "imitate", "wire": "stage:fit"}],
            },
            "read": {"kind": "evaluate", "arms": {"a": "stage:more:deranged@x", "text": "text"}},
            "plain": {"kind": "evaluate", "arms": {"text": "text"}},
        },
    }
    stages = replicated(raw)["stages"]
    assert list(stages) == [
        "fit-seed0",
        "fit-seed1",
        "more-seed0",
        "more-seed1",
        "read-seed0",
        "read-seed1",
        "plain",
    ]
    assert stages["read-seed1"]["arms"] == {"a": "stage:more-seed1:deranged@x", "text": "text"}
    assert stages["more-seed0"]["objectives"][0]["wire"] == "stage:fit-seed0"
    assert (stages["more-seed1"]["seed"], stages["more-seed1"]["start_from"]) == (1, "fit-seed1")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": [1, 1]}, r"seeds: found \[1, 1\], expected different whole numbers"),
        ({"seeds": 3}, "seeds: found 3, expected different whole numbers"),
        ({"seed": 1}, "seed: found it beside seeds, expected one of them"),
        ({"stages": {"baseline": {"kind": "evaluate", "arms": MASKED}}}, "found a study that trains nothing"),
        (
            {"oracles": {"best": ["plain_after/text", "baseline/text"]}},
            "'plain_after/text', which has several seeds",
        ),
    ],
)
def test_seeds_that_cannot_be_meant_are_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    study = seeded(**changes)
    if "stages" in changes:
        study |= {"effects": None, "comparisons": []}
    path = written(tmp_path, {key: value for key, value in study.items() if value is not None})
    with pytest.raises(UserError, match=sentence):
        loading.load(str(path))


def test_what_the_sample_resolves_is_said_before_the_first_stage(
    carried: Carried, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = loading.load(str(written(tmp_path, small_study(tasks=["one_hop"], comparisons=[]))))
    runner.run(study, tmp_path / "runs", Log(), stages=["baseline"])
    before, after = capsys.readouterr().out.split("starting baseline")
    assert f"one_hop: {planned(8)}" in before
    assert "will not be resolved" not in after
