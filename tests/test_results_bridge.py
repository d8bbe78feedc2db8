"""The tables of docs/results/bridge-real.md follow from the outcomes kept beside it."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentwire.evaluation.combinations import Combination, PairedArms
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import compare, estimate
from latentwire.evaluation.summarize import by_arm
from latentwire.studies import loading
from tests.support.result_cells import near, numbers

RESULTS = Path(__file__).parent.parent / "docs" / "results"
KEPT = RESULTS / "bridge-real"
PAGE = (RESULTS / "bridge-real.md").read_text(encoding="utf-8").replace("−", "-").replace("**", "")
PROSE = " ".join(PAGE.split())
ARMS = {
    "Qwen reads the text and answers": "source/text",
    "the text after a learned prefix of 16 (style)": "read_controls/styled_text",
    "the bridge: Qwen reads, SmolLM2 answers": "read_tuned/tuned",
    "`relay_asked`: Qwen writes, and knows the question": "relays/relay_asked",
    "text": "target/text",
    "`evict,ratio=4`": "target/evict",
    "a learned prefix of 48, no source": "read_controls/learned_prefix",
    "mean of many messages": "read_tuned/mean",
    "`budget,ratio=4`": "target/budget",
    "`relay`: Qwen writes as many tokens, without the question": "relays/relay",
    "`nth,ratio=4`": "target/nth",
    "the text of another passage": "target/deranged_text",
    "deranged: another passage's message": "read_tuned/deranged",
    "none": "target/none",
    "zero": "read_tuned/zero",
    "counterfactual (n = 1,046): follows the exchanged answer": "read_tuned/counterfactual",
}
NAMED = {
    "the bridge": "read_tuned/tuned",
    "the learned prefix": "read_controls/learned_prefix",
    "`relay`": "relays/relay",
    "`relay_asked`": "relays/relay_asked",
    "`budget`": "target/budget",
    "`evict`": "target/evict",
    "the text": "target/text",
    "the text in the same style": "read_controls/styled_text",
    "Qwen's own answers": "source/text",
    "deranged": "read_tuned/deranged",
    "none": "target/none",
    "the mean message": "read_tuned/mean",
}
PRIMARY = ["G", "P", "tuned against a learned prefix", "tuned against the relay"]
ERRORS = (None, "wrong boundary", "wrong relation", "not in the passage", "unreadable")
TRAININGS = {
    "`tuned`": "tuned",
    "`cross`": "cross",
    "`ridge`": "ridge",
    "`constant`": "constant",
    "`style`": "style",
}
Kept = dict[str, list[Outcome]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """By the study's name of a reading, `stage/arm`."""
    folder = tmp_path_factory.mktemp("outcomes")
    stages = {"tuned": "read_tuned", "controls": "read_controls"}
    outcomes: Kept = {}
    for file in sorted(KEPT.glob("*.jsonl.xz")):
        name = file.name.removesuffix(".jsonl.xz")
        path = folder / file.stem
        path.write_bytes(lzma.decompress(file.read_bytes()))
        arms = by_arm(read_outcomes(path))
        outcomes |= {f"{stages.get(name, name)}/{arm}": own for arm, own in arms.items()}
    return outcomes


def _rows(head: str) -> list[list[str]]:
    """The cells of the table whose head begins with these words, without the head."""
    table = PAGE.split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def _mean(outcomes: Sequence[Outcome], metric: str) -> float:
    return sum(outcome.metrics[metric] for outcome in outcomes) / len(outcomes)


def _share(outcomes: Sequence[Outcome], metric: str) -> list[Any]:
    found = estimate(outcomes, metric)
    return near(found.value, found.low, found.high)


def _closed(kept: Kept, arm: str, yardstick: str, floor: str = "target/none") -> Combination:
    chosen = {
        name: [replace(each, metrics={"f1": each.metrics["f1"]}) for each in kept[name]]
        for name in (arm, yardstick, floor)
    }
    return PairedArms.of(chosen).ratio({arm: 1, floor: -1}, {yardstick: 1, floor: -1})


def test_every_score_of_the_bridge_follows_from_its_outcomes(kept: Kept) -> None:
    rows = _rows("arm | exact match")
    assert {ARMS[row[0]] for row in rows} == set(kept)
    for name, exact, f1, nll, first in rows:
        own = kept[ARMS[name]]
        assert len(own) == (1046 if name.startswith("counterfactual") else 1190)
        assert numbers(exact) == _share(own, "exact_match")
        assert numbers(f1) == _share(own, "f1")
        assert float(nll) == pytest.approx(_mean(own, "nll"), abs=0.006)
        assert float(first) == pytest.approx(_mean(own, "first_token_top1"), abs=0.0006)


def test_every_difference_of_the_bridge_follows_from_its_outcomes(kept: Kept) -> None:
    rows = _rows("comparison")
    assert len(rows) == 16
    found = {}
    for name, cell in rows:
        a, b = name.removeprefix("G: ").removeprefix("P: ").split(" minus ")
        found[name] = compare(kept[NAMED[a]], kept[NAMED[b]], "f1")
        assert numbers(cell) == near(found[name].difference, found[name].low, found[name].high)
    unresolved = {name for name, each in found.items() if not each.resolved}
    assert unresolved == {
        "the bridge minus `relay_asked`",
        "deranged minus none",
        "the text in the same style minus Qwen's own answers",
    }
    apart = found["deranged minus none"]
    assert apart.equal
    assert max(-apart.low, apart.high) < 0.0105


def test_the_first_four_differences_are_those_that_the_study_names_as_primary(kept: Kept) -> None:
    asked = [each for each in loading.load(str(KEPT / "reading.yaml")).comparisons if each.primary]
    assert [each.name for each in asked] == PRIMARY
    shown = [row[0].removeprefix("G: ").removeprefix("P: ").split(" minus ") for row in _rows("comparison")[:4]]
    assert [(NAMED[a], NAMED[b]) for a, b in shown] == [(each.a, each.b) for each in asked]
    assert all(each.metric == "f1" for each in asked)
    corrected = holm([compare(kept[each.a], kept[each.b], "f1").p for each in asked])
    assert corrected == [pytest.approx(0.0004, abs=0.00005)] * 4


def test_every_interval_of_the_first_paragraph_stands_in_a_table() -> None:
    first = PAGE.split("\nStudy: ")[0]
    intervals = re.findall(r"[+-]?[0-9.]+ \[[^]]+\]", first)
    assert len(intervals) == 4
    cells = {cell.strip() for line in PAGE.splitlines() if line.startswith("|") for cell in line.split("|")}
    assert set(intervals) <= cells


def test_every_share_of_the_gap_follows_from_the_outcomes(kept: Kept) -> None:
    names = NAMED | {"a learned prefix of 48, no source": "read_controls/learned_prefix"}
    rows = _rows("arm | of the text (0.206)")
    assert len(rows) == 6
    for name, *cells in rows:
        for cell, yardstick in zip(cells, ("target/text", "read_controls/styled_text"), strict=True):
            found = _closed(kept, names[name.replace(",ratio=4", "")], yardstick)
            assert numbers(cell) == near(found.value, found.low, found.high)
    prefix = _closed(kept, "read_tuned/tuned", "read_controls/styled_text", "read_controls/learned_prefix")
    said = PROSE.split("the bridge closes 0.379 ")[1].split("]")[0]
    assert [0.379, *numbers(said)] == near(prefix.value, prefix.low, prefix.high)


def test_every_kind_of_answer_is_counted_from_the_outcomes(kept: Kept) -> None:
    rows = _rows("arm | right")
    assert len(rows) == 5
    for name, *counts in rows:
        found = Counter(each.error for each in kept[ARMS[name]])
        assert list(map(int, counts)) == [found[error] for error in ERRORS]
    assert "745 of its 1,190 answers do not stand in the passage" in PROSE


def test_what_becomes_of_exchanged_answers_follows_from_the_outcomes(kept: Kept) -> None:
    exchanged = {each.id: each for each in kept["read_tuned/counterfactual"]}
    true = [each for each in kept["read_tuned/tuned"] if each.id in exchanged]
    assert _share(true, "exact_match") == [0.129, 0.109, 0.152]
    assert _share(list(exchanged.values()), "sticks") == [0.010, 0.004, 0.018]
    right = [exchanged[each.id].metrics for each in true if each.metrics["exact_match"] == 1]
    follow, stay = (sum(each[name] for each in right) for name in ("exact_match", "sticks"))
    assert (len(right), follow, stay) == (135, 14, 8)
    assert "Of the 135 that it had right, 14 follow, 8 stay, and 113 become something else" in PROSE


def test_the_samples_are_every_119th_answer(kept: Kept) -> None:
    columns = (
        "source/text",
        "target/text",
        "read_controls/styled_text",
        "read_tuned/tuned",
        "read_tuned/deranged",
    )
    answers = zip(*([each.prediction or "(nothing)" for each in kept[arm][::119]] for arm in columns), strict=True)
    assert [row[2:] for row in _rows("question | gold")] == [list(each) for each in answers]


def test_every_loss_of_the_trainings_follows_from_the_diagnostics() -> None:
    rows = _rows("training")
    assert [row[0].split(",")[0] for row in rows] == list(TRAININGS)
    for name, _, steps, start, middle, last, first, first_last in rows:
        file = KEPT / f"training-{TRAININGS[name.split(',')[0]]}.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        at = {line["step"]: line for line in lines if "eval_loss" in line}
        assert max(at) == int(steps)
        assert all(line["eval_documents"] == 618 for line in at.values())
        assert bool(middle) == (250 in at)
        for cell, step in ((start, 0), (middle, 250), (last, int(steps))):
            assert not cell or float(cell) == pytest.approx(at[step]["eval_loss"], abs=0.0006)
        shares = [at[step]["eval_first_token_accuracy"] for step in (0, int(steps))]
        assert [float(first), float(first_last)] == [pytest.approx(each, abs=0.0006) for each in shares]


@pytest.mark.parametrize("name", ["reading", "help", "qwen1.5b-gemma", "qwen1.5b-smollm2", "smollm2-qwen0.5b"])
def test_the_studies_of_real_bridges_can_be_read(name: str) -> None:
    assert loading.load(str(KEPT / f"{name}.yaml")).comparisons
