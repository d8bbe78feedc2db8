"""Runs are found by what they are and by what they scored; the run files are the only database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.runs import queries, run_tables
from latentwire.runs.store import Run
from tests.support.command_line import Command
from tests.support.run_folders import answers, evaluated, record, trained


@pytest.fixture
def three(tmp_path: Path) -> dict[str, Run]:
    root = tmp_path / "runs"
    good, bad = [1, 1, 1, 0] * 5, [1, 0, 0, 0] * 5
    return {
        "good": evaluated(root, "after", [*answers(good), *answers(bad, "none")]),
        "bad": evaluated(root, "baseline", [*answers(bad), *answers(bad, "none")], study="other"),
        "fit": trained(root, "fit", seed=3),
    }


def found(root: Path, **wanted: object) -> set[str]:
    hits, _ = queries.search(root, queries.query(**wanted))  # type: ignore[arg-type]
    return {hit.run.record.stage for hit in hits}


def test_runs_are_found_by_study_stage_kind_and_status(three: dict[str, Run], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert found(root) == {"after", "baseline", "fit"}
    assert found(root, study="s") == {"after", "fit"}
    assert found(root, stage="f*") == {"fit"}
    assert found(root, kind="evaluate", study="o*") == {"baseline"}
    Run.create(root, record(stage="killed"))
    assert found(root, status=["interrupted", "failed"]) == {"killed"}
    assert found(root, status=["done"]) == {"after", "baseline", "fit"}


def test_runs_are_found_by_what_an_arm_scored_on_a_task(three: dict[str, Run], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert found(root, metric=["exact_match>0.5"]) == {"after"}
    assert found(root, metric=["exact_match>=0.25"]) == {"after", "baseline"}
    assert found(root, metric=["exact_match>0.5"], arm="none") == set()
    assert found(root, metric=["exact_match<0.5"], arm="text", task="one_hop") == {"baseline"}
    assert found(root, metric=["exact_match>0.5", "f1<0.5"]) == {"after"}  # by its arm `none`
    assert found(root, metric=["best_loss<1.7"]) == {"fit"}
    hits, _ = queries.search(root, queries.query(metric=["exact_match>0.5"]))
    assert hits[0].met == ("text one_hop exact_match 0.750",)


def test_runs_are_found_by_when_they_began(three: dict[str, Run], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    began = datetime(2026, 3, 5, 12, tzinfo=UTC)
    times = [three["bad"].record.times[0].model_copy(update={"started": began.isoformat()})]
    three["bad"].write(times=tuple(times))
    assert found(root, until="2026-03-05") == {"baseline"}
    assert found(root, since="2026-03-05", until="2026-03-05T12:00") == set()
    assert found(root, since="2026-03-05", until="2026-03-05T12:00:01") == {"baseline"}
    assert found(root, since="3d", now=datetime(2026, 3, 8, 11, tzinfo=UTC)) == {"baseline", "after", "fit"}
    assert found(root, since="2d", now=datetime(2026, 3, 8, 11, tzinfo=UTC)) == {"after", "fit"}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"metric": ["exact_match>a"]}, "--metric: found 'exact_match>a', expected METRIC and a bound"),
        ({"status": ["finished"]}, "--status: found 'finished', expected one of running, done"),
        ({"since": "yesterday"}, "--since: found 'yesterday', expected a date"),
        ({"arm": "text"}, "--arm: found it without --metric"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(wanted: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        queries.query(**wanted)  # type: ignore[arg-type]


def test_the_list_shows_when_a_run_began_and_what_met_the_bound(
    three: dict[str, Run], latentwire: Command
) -> None:
    status, out, _ = latentwire("runs", "list", "--metric", "exact_match > 0.5")
    assert status == 0
    assert out.count("\n") == 2
    assert f"{queries.began(three['good']):%Y-%m-%d %H:%M}" in out
    assert "text one_hop exact_match 0.750" in out
    status, out, _ = latentwire("runs", "list", "--study", "s", "--json")
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["evaluate", "finetune"]
    status, out, _ = latentwire("runs", "list", "--study", "nobody")
    assert (status, out) == (0, "no such runs in runs\n")
    status, _, err = latentwire("runs", "list", "--metric", "exact_match>")
    assert status == 2
    assert "--metric" in err


def test_two_thousand_runs_are_listed_without_reading_more_than_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time itself is in docs/runs.md: no test asserts one."""
    run = evaluated(tmp_path / "runs", "baseline", answers([1.0, 0.0] * 5))
    monkeypatch.setattr(Run, "metrics", lambda self: pytest.fail("read metrics although none were asked for"))
    hits, _ = queries.search(tmp_path / "runs", queries.query(status=["done"]))
    assert [hit.run.record.run for hit in hits] == [run.record.run]


def test_a_trained_wire_is_listed_in_a_few_words(tmp_path: Path) -> None:
    wire = {
        "source": "org/a",
        "encoder": {"kind": "self", "select": {"kind": "anchors", "ratio": 4, "slots": 0}, "rank": 64},
        "adapters": {"org/a": {"kind": "native"}, "folder/b.gguf": {"kind": "deep_prefix"}},
    }
    run = trained(tmp_path / "runs", "wire", seed=0)
    run.write(configuration={"wire": wire}, results={"steps": 100, "stopped": "plateau"})
    hits, _ = queries.search(tmp_path / "runs", queries.query())
    assert "self anchors 4:1 for a, b.gguf, 100 steps, plateau" in "\n".join(run_tables.listed(hits))
