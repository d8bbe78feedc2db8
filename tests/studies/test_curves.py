"""A study over wires of two sizes, the smaller begun from the larger's weights, ends in curves."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file

from latentwire.errors import UserError
from latentwire.evaluation.eval_report import of_questions
from latentwire.runs.log import Log
from latentwire.studies import curves, drawing, figures, loading, plan, runner
from latentwire.studies.study_summary import JSON, MARKDOWN
from latentwire.tasks import resolve
from latentwire.tasks.world.tiers import stated
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.modules import WEIGHTS
from tests.support.wire_studies import FIT, STUDY

SIZES = Path(__file__).parents[2] / "docs/results/latent-wire/sizes.yaml"
LIMIT = 6


def eighth(**changes: Any) -> dict[str, Any]:
    stage = copy.deepcopy(FIT)
    stage["wire"]["encoder"]["select"]["ratio"] = 8
    return {**stage, "start_from": "fit", **changes}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    arms = {"r4": "stage:fit", "r4_4bit": "stage:fit:4bit", "r8": "stage:fit8", "mean": "stage:fit:mean"}
    stages = {
        "baseline": STUDY["stages"]["baseline"],
        "fit": FIT,
        "fit8": eighth(learning_rate=1e-30),
        "latent": {"kind": "evaluate", "arms": arms},
    }
    study = loading.Study.model_validate(
        {**STUDY, "limit": LIMIT, "stages": stages, "effects": None, "comparisons": []}
    )
    return runner.run(study, tmp_path_factory.mktemp("runs"), Log())


@pytest.mark.slow
def test_another_ratio_begins_with_the_weights_of_the_one_before(done: runner.Carried) -> None:
    four, eight = (done.runs[name].folder / "checkpoints" for name in ("fit", "fit8"))
    before, after = load_file(four / "best" / WEIGHTS), load_file(eight / "final" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all((after[name] - each).abs().max() < 1e-6 for name, each in before.items())
    assert read_config(eight / "best").encoder.select.ratio == 8


def test_points_are_those_of_arms_whose_size_means_something(done: runner.Carried) -> None:
    found = {each.arm: each for each in curves.points(done.summary)}
    assert set(found) == {
        "baseline/text",
        "baseline/none",
        "baseline/nth",
        "latent/r4",
        "latent/r4_4bit",
        "latent/r8",
    }
    four, eight, coarse = found["latent/r4"], found["latent/r8"], found["latent/r4_4bit"]
    assert four.latents > 1.8 * eight.latents
    assert (four.bytes / four.latents, coarse.latents) == (
        pytest.approx(eight.bytes / eight.latents),
        four.latents,
    )
    assert 3.5 < four.bytes / coarse.bytes < 4
    assert four.series == eight.series != coarse.series
    assert eight.facts_per_latent == pytest.approx(eight.facts / eight.latents)
    text = found["baseline/text"]
    contexts = [example.context for example in resolve(["one_hop"], None)[0].examples(limit=LIMIT)]
    assert text.bytes == pytest.approx(sum(len(each.encode()) for each in contexts) / LIMIT)
    assert (text.latents, text.facts, found["baseline/none"].bytes) == (None, four.facts, 0)
    assert (
        found["latent/r8"].value
        == done.summary["stages"]["latent"]["metrics"]["r8"]["one_hop"]["exact_match"]["value"]
    )
    assert "## Sizes" in (done.folder / MARKDOWN).read_text()


def test_the_summary_says_that_no_message_knows_the_question(done: runner.Carried) -> None:
    assert of_questions([]) in (done.folder / MARKDOWN).read_text()


@pytest.mark.parametrize("task", ["one_hop", "later", "shifted/two_hop", "shifted/later"])
def test_facts_are_the_sentences_of_a_passage(task: str) -> None:
    for example in resolve([task], None)[0].examples(limit=20):
        assert stated(example.id) == example.context.count(".")


def test_no_facts_are_known_of_other_tasks() -> None:
    assert [stated(each) for each in ("world/sums/test/000001", "piqa/1", "world/one_hop/test/x")] == [None] * 3


def test_the_same_study_draws_the_same_small_file(done: runner.Carried, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = curves.draw(done.summary, tmp_path / "curves.svg")
    assert [path.name for path in written] == ["curves-bytes.svg", "curves-facts.svg"]
    first = [path.read_bytes() for path in written]
    for drawn in first:
        assert len(drawn) < 60_000
        assert all(name in drawn for name in (b"one_hop", b"type_floor", b"self, anchors", b"nth"))
    assert b"self, anchors, 4bit" in first[0]
    assert [path.read_bytes() for path in curves.draw(done.summary, tmp_path / "curves.svg")] == first


def test_a_legend_wider_than_its_panel_is_not_cut_off(tmp_path: Path) -> None:
    made = drawing.figure(1, 1)
    made.subplots().plot([1], label="a name much wider than the panel is")
    made.legend(loc="outside upper center")
    drawing.write(made, tmp_path / "wide.svg")
    inches = float(ElementTree.parse(tmp_path / "wide.svg").getroot().attrib["width"].removesuffix("pt")) / 72
    assert inches > made.legends[0].get_window_extent().width / made.dpi > 1


def test_seeds_of_one_size_are_joined_by_their_mean() -> None:
    one = curves.Point("a", "t", "s", 100, 10, 20, 0.4, 0.3, 0.5)
    other, far = replace(one, value=0.6), replace(one, bytes=50, value=0.1)
    where = [(each, each.at("bytes")) for each in (one, other, far)]
    assert list(curves._means(where)) == [(50, 0.1), (100, pytest.approx(0.5))]


def test_a_study_without_latents_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json"):
        figures.draw(tmp_path, tmp_path / "curves.svg")
    (tmp_path / JSON).write_text(json.dumps({"study": "x", "stages": {}, "comparisons": [], "derived": {}}))
    with pytest.raises(UserError, match="no evaluation over latents and no training"):
        figures.draw(tmp_path, tmp_path / "curves.svg")
    for place in ("curves", ".", "none/curves.svg", "curves.txt"):
        with pytest.raises(UserError, match=rf"report: {tmp_path / place} cannot be written, expected"):
            figures.draw(tmp_path, tmp_path / place)
    for other in ([], {}, {"derived": 3}):
        (tmp_path / JSON).write_text(json.dumps(other))
        with pytest.raises(UserError, match=r"found another summary\.json than a study's"):
            figures.draw(tmp_path, tmp_path / "curves.svg")
    assert [path.name for path in tmp_path.iterdir()] == [JSON]


@pytest.mark.slow
def test_the_study_of_sizes_sweeps_ratios_and_seeds() -> None:
    study = loading.load(str(SIZES))
    trained = {name: stage for name, stage in study.stages.items() if stage.kind == "wire"}
    assert {(each.wire.encoder.select.ratio, each.seed) for each in trained.values()} == {
        (ratio, seed) for ratio in (4, 8, 16) for seed in (0, 1, 2)
    }
    assert trained["sixteen-2"].start_from == "eight-2"
    planned = plan.make(study)
    assert len({stage.identity for stage in planned.stages.values()}) == len(planned.stages)


def test_a_studys_seed_is_that_of_its_wires() -> None:
    assert loading.load("latent-wire", ["seed=3"]).stages["fit"].seed == 3
    assert loading.load("latent-wire", ["seed=3", "stages.fit.seed=1"]).stages["fit"].seed == 1
