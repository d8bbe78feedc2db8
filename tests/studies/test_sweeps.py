"""A sweep in a study is the same study with its points written out by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.errors import UserError
from latentwire.runs.log import Log
from latentwire.studies import loading, plan, runner
from tests.support.studies import small_study, written
from tests.support.wire_studies import EMBEDDED, FIT, STUDY, encoder, fit

RATIO = "wire.encoder.select.ratio"
SWEEP = {RATIO: [4, 8], "seed": [0, 1]}
ON = {**FIT, "start_from": "fit", "steps": 3}
SWEPT: dict[str, Any] = {
    **STUDY,
    "limit": 2,
    "stages": {
        "baseline": STUDY["stages"]["baseline"],
        "fit": {**FIT, "sweep": SWEEP},
        "on": {**ON, "sweep": SWEEP},
        "latent": {
            "kind": "evaluate",
            "arms": {"latent": "stage:fit", "4bit": "stage:fit:4bit", "on": "stage:on", "none": "none"},
        },
    },
    "effects": {"baseline": "baseline/text", "retained": ["latent/latent", "latent/on-4-0", "baseline/nth"]},
    "comparisons": [{"name": "latent/latent", "a": "latent/latent-8-1", "b": "baseline/nth"}],
}


def by_hand() -> dict[str, Any]:
    study = copy.deepcopy(SWEPT)
    points = [(ratio, seed) for ratio in (4, 8) for seed in (0, 1)]
    arms: dict[str, str] = {}
    study["stages"] = {"baseline": STUDY["stages"]["baseline"]}
    for name, changes in ("fit", {}), ("on", {"steps": 3}):
        for ratio, seed in points:
            stage = fit(EMBEDDED, encoder(ratio), {EMBEDDED: {"kind": "native"}}, seed=seed, **changes)
            start = {"start_from": f"fit-{ratio}-{seed}"} if name == "on" else {}
            study["stages"][f"{name}-{ratio}-{seed}"] = {**stage, **start}
    for arm, of, variant in ("latent", "fit", ""), ("4bit", "fit", ":4bit"), ("on", "on", ""):
        arms |= {f"{arm}-{ratio}-{seed}": f"stage:{of}-{ratio}-{seed}{variant}" for ratio, seed in points}
    study["stages"]["latent"] = {"kind": "evaluate", "arms": {**arms, "none": "none"}}
    retained = [f"latent/latent-{ratio}-{seed}" for ratio, seed in points]
    study["effects"]["retained"] = [*retained, "latent/on-4-0", "baseline/nth"]
    return study


def test_a_sweep_is_the_study_written_out_by_hand(tmp_path: Path) -> None:
    swept = loading.load(str(written(tmp_path, SWEPT)))
    plain = loading.load(str(written(tmp_path, by_hand(), "plain.yaml")))
    assert swept.model_dump() == plain.model_dump()  # all but the text of the file as it was read
    assert list(swept.stages) == list(plain.stages)
    one, two = plan.make(swept), plan.make(plain)
    assert {name: each.identity for name, each in one.stages.items()} == {
        name: each.identity for name, each in two.stages.items()
    }
    assert len({each.identity for each in one.stages.values()}) == 10


def test_points_are_named_by_words_models_by_their_names(tmp_path: Path) -> None:
    bare = {"kind": "wire", "wire": {**FIT["wire"], "source": "x"}}
    sweep = {"wire.source": ["$wren"], "learning_rate": [1.0e-3, 1.0e-5], "objectives.0.weight": [0.5, "1e-1"]}
    stage = {**FIT, **bare, "sweep": sweep, "objectives": [{"kind": "answer_ce"}]}
    study = {"name": "x", "model": EMBEDDED, "tasks": ["one_hop"], "models": {"wren": EMBEDDED}}
    found = loading.load(str(written(tmp_path, {**study, "stages": {"fit": stage}}))).stages
    assert list(found) == [
        f"fit-wren-{rate}-{weight}" for rate in ("0.001", "1e-05") for weight in ("0.5", "1e-1")
    ]
    last = found["fit-wren-1e-05-1e-1"]
    assert last.kind == "wire"
    assert (last.wire.source, last.learning_rate, last.objectives[0].weight) == (EMBEDDED, 1e-5, 0.1)


def test_finetunings_sweep_over_what_they_share(tmp_path: Path) -> None:
    study = small_study(effects=None, comparisons=[], gates=[])
    study["stages"] = {
        "ft": {**study["stages"]["prefix_ft"], "sweep": {"seed": [3, 4]}},
        "after": {"kind": "evaluate", "start_from": "ft-4", "arms": {"text": "text"}},
    }
    found = loading.load(str(written(tmp_path, study))).stages
    assert [(name, each.seed, each.rows) for name, each in found.items() if each.kind == "finetune"] == [
        ("ft-3", 3, 2),
        ("ft-4", 4, 2),
    ]
    study["stages"]["after"]["start_from"] = "ft"
    with pytest.raises(UserError, match=r"after\.start_from: found 'ft', which is swept, .* one of ft-3, ft-4,"):
        loading.load(str(written(tmp_path, study)))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("fit.sweep", [4], r"stages\.fit\.sweep: found \[4\], expected a mapping of dotted paths"),
        ("fit.sweep", {}, r"stages\.fit\.sweep: found \{\}"),
        ("fit.sweep", {"seed": 4}, r"sweep\.seed: found 4, expected a list of values"),
        ("fit.sweep", {"loss": {"kl": 4}}, r"sweep\.loss\.kl: found 4, expected a mapping of settings"),
        ("fit.sweep", {"loss": {"k l": {"seed": 1}}}, r"sweep\.loss: found 'k l', expected a word"),
        ("fit.sweep", {"loss": {"kl": {"a..b": 1}}}, r"found 'a\.\.b', expected a dotted path"),
        ("odd", {**FIT, "sweep": {"loss": {"kl": {"stepps": 1}}}}, r"odd-kl\.stepps: found an unknown key"),
        ("fit.sweep", {"seed": []}, r"sweep\.seed: found \[\], expected a list"),
        ("fit.sweep", {"seed": [1, [2]]}, r"sweep\.seed: found \[2\], expected a word or a number"),
        ("fit.sweep", {"seed": [None]}, r"sweep\.seed: found nothing, expected a word"),
        ("fit.sweep", {"precision": ["a b"]}, r"sweep\.precision: found 'a b', expected a word"),
        ("fit.sweep", {"seed": [1, 1]}, r"found two points called fit-1, expected every value once"),
        ("fit.sweep", {"a..b": [1]}, r"found 'a\.\.b', expected a dotted path"),
        ("fit.sweep", {"steps.more": [1]}, r"sweep\.steps\.more: found 2 at steps, expected a mapping"),
        ("on.sweep", SWEEP | {"wire.encoder.rnk": [1]}, r"on\.start_from: found 'fit', which is swept"),
        ("odd", {**FIT, "sweep": {"wire.encoder.rnk": [1]}}, r"odd-1\.wire\.encoder\.rnk: found an unknown key"),
        ("fit.swep", {"seed": [1]}, r"fit-4-0\.swep: found an unknown key, .*nearest: sweep"),
        ("fit-4-0", FIT, r"fit\.sweep: found a second stage fit-4-0"),
        ("baseline.sweep", {"seed": [1]}, r"found it in a stage of kind 'evaluate', expected one of kind wire or"),
        ("on.sweep", {"seed": [0, 1]}, r"on\.start_from: found 'fit', .* fit-4-0, .* or the same sweep here"),
        ("latent.start_from", "fit", r"latent\.start_from: found 'fit', which is swept"),
        ("latent.arms.on-8-1", "none", r"latent\.arms: found a second arm on-8-1"),
        (
            "fit2",
            {**FIT, "objectives": [{"kind": "imitate", "wire": "stage:fit"}]},
            r"fit2\.objectives\.0\.wire: found 'fit', which is swept",
        ),
    ],
)
def test_what_is_no_sweep_is_told_in_one_sentence(path: str, value: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as told:
        loading.load(str(written(tmp_path, {**SWEPT, "stages": SWEPT["stages"] | _with(path, value)})))
    assert "\n" not in str(told.value)


def _with(path: str, value: Any) -> dict[str, Any]:
    name, *rest = path.split(".")
    stage = copy.deepcopy(SWEPT["stages"].get(name, value))
    if rest:
        place = stage
        for part in rest[:-1]:
            place = place[part]
        place[rest[-1]] = value
    return {name: stage}


def test_a_reading_that_is_several_is_refused_with_the_nearest(tmp_path: Path) -> None:
    for key, changes in (
        ("comparisons.0.a", {"comparisons": [{"name": "x", "a": "latent/latent", "b": "baseline/nth"}]}),
        ("effects.baseline", {"effects": {"baseline": "latent/latent"}}),
        ("oracles.best.1", {"oracles": {"best": ["baseline/text", "latent/latent"]}}),
    ):
        expected = rf"{key}: found 'latent/latent', which is swept, expected one of latent/latent-4-0, .*nearest: "
        with pytest.raises(UserError, match=expected):
            loading.load(str(written(tmp_path, {**SWEPT, **changes})))


def test_a_change_goes_to_all_points_and_to_no_single_one(tmp_path: Path) -> None:
    file = str(written(tmp_path, SWEPT))
    found = loading.load(file, ["stages.fit.warmup_steps=1", f"stages.fit.sweep.{RATIO}=[4, 8]"]).stages
    assert [each.warmup_steps for each in found.values() if each.kind == "wire"] == [1] * 4 + [0] * 4
    for change, expected in (
        (
            "stages.fit-4-0.steps=9",
            r"fit-4-0\.steps: found a point of a sweep, expected fit, which is all of them",
        ),
        ("stages.fit.seed=9", r"found what fit sweeps, expected stages\.fit\.sweep\.seed=\[\.\.\.\]"),
        (f"stages.fit.{RATIO}=9", r"found what fit sweeps, expected stages\.fit\.sweep\.wire"),
    ):
        with pytest.raises(UserError, match=expected):
            loading.load(file, [change])


def test_a_point_may_have_a_name_and_several_settings(tmp_path: Path) -> None:
    named = {"size": {"small": {"wire.encoder.rank": 1, "steps": 3}, "plain": {}}, "seed": [0, 1]}
    raw = {
        **SWEPT,
        "stages": {"fit": {**SWEPT["stages"]["fit"], "sweep": named}},
        "comparisons": [],
        "effects": None,
    }
    file = str(written(tmp_path, raw))
    found = loading.load(file).stages
    assert list(found) == ["fit-small-0", "fit-small-1", "fit-plain-0", "fit-plain-1"]
    settings = [(each.wire.encoder.rank, each.steps, each.seed) for each in found.values()]
    assert settings == [(1, 3, 0), (1, 3, 1), (2, 2, 0), (2, 2, 1)]
    with pytest.raises(UserError, match="found what fit sweeps"):
        loading.load(file, ["stages.fit.steps=9"])


@pytest.mark.slow
def test_a_swept_study_runs_and_goes_on_as_stages_of_their_own(tmp_path: Path) -> None:
    changes = ["stages.fit.sweep={seed: [0, 1]}", "stages.on.sweep={seed: [0, 1]}", "comparisons=[]"]
    changes += ["effects.retained=[latent/latent]", "stages.latent.arms={latent: stage:fit, more: stage:on:4bit}"]
    study = loading.load(str(written(tmp_path, SWEPT)), changes)
    first = runner.run(study, tmp_path / "runs", Log(), stages=["on-1"])
    assert set(first.runs) == {"fit-1", "on-1"}
    carried = runner.run(study, tmp_path / "runs", Log())
    assert carried.runs["on-1"].record.run == first.runs["on-1"].record.run
    assert set(carried.runs["on-0"].record.parents) == {"fit-0"}
    found = json.loads((carried.folder / "summary.json").read_text())
    assert list(found["stages"]["latent"]["metrics"]) == ["latent-0", "latent-1", "more-0", "more-1"]
    assert {each["of"] for each in found["derived"]["effects"]} == {"latent/latent-0", "latent/latent-1"}
