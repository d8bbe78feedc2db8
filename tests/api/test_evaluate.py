"""`latentwire.evaluate` answers as the command does, and its results are objects."""

import json
import sys

import pytest

import latentwire as lw
from latentwire.evaluation.arms import Arm
from tests.support.models import tiny_lm

FACTS = [
    lw.Example(id=str(n), group=str(n), context=f"{name} lives in {town}.", question="Where?", answers=(town,))
    for n, (name, town) in enumerate([("Ada", "Rome"), ("Bob", "Oslo"), ("Eve", "Bern"), ("Max", "Lima")])
]

BARE = lw.Example(id="x", group="x", context="", question="?")


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(max_position_embeddings=256)


@pytest.fixture(scope="module")
def results(lm):
    return lw.evaluate(lm, [lw.task(FACTS, "towns"), lw.task(FACTS[:3], "fewer")], ["text", "leaky", "none"])


def test_spellings_and_objects_of_wires_and_tasks_give_the_same_outcomes(lm):
    wire = lw.wire("text,mask=prefix")
    spelled = lw.evaluate(lm, lw.task(FACTS), "text,mask=prefix")
    assert lw.evaluate(lm, [lw.task(FACTS)], wire).outcomes == spelled.outcomes
    assert lw.evaluate(lm, [lw.task(FACTS)], [Arm(wire)]).outcomes == spelled.outcomes


def test_the_numbers_are_those_that_the_command_writes(capsys, monkeypatch, lm, tmp_path):
    from latentwire import cli

    lm.save(tmp_path / "model")
    rows = [{"context": e.context, "question": e.question, "answers": list(e.answers)} for e in FACTS]
    (tmp_path / "towns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "--model", tmp_path / "model", "--task", "jsonl", "--data", tmp_path / "towns.jsonl"]
    words += ["--wire", "text", "--wire", "none", "--json", tmp_path / "numbers.json"]
    monkeypatch.setattr(sys, "argv", ["latentwire", *map(str, words)])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    found = lw.evaluate(tmp_path / "model", "jsonl", ["text", "none"], data=tmp_path / "towns.jsonl")
    assert found.numbers() == json.loads((tmp_path / "numbers.json").read_text())["metrics"]
    assert all(line in printed for line in str(found).splitlines())


def test_results_have_estimates_comparisons_and_tables(results):
    assert results.arms == ["text", "leaky", "none"]
    assert results.tasks == ["towns", "fewer", "macro"]
    assert results.estimate("text").n == 7
    assert results.estimate("text", "towns", "nll").value > 0
    assert results.compare("text", "none", "towns", "nll").n == 4
    assert results.leaking == ("leaky",)
    assert "LEAKS" in str(results)


def test_an_estimate_is_the_mean_of_its_outcomes(results):
    nll = [o.metrics["nll"] for o in results.outcomes if (o.arm, o.task) == ("text", "towns")]
    assert results.estimate("text", "towns", "nll").value == pytest.approx(sum(nll) / len(nll))


def test_outcomes_and_scores_become_data_frames(results):
    frame = results.to_pandas()
    assert len(frame) == len(results.outcomes) == 21
    assert {"task", "arm", "id", "prediction", "exact_match", "f1", "nll"} <= set(frame.columns)
    scores = results.scores_to_pandas()
    row = scores[(scores.arm == "text") & (scores.task == "towns") & (scores.metric == "nll")].iloc[0]
    assert row["value"] == results.estimate("text", "towns", "nll").value


def test_without_pandas_a_frame_is_refused_in_one_sentence(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(lw.UserError, match="pandas: not installed"):
        results.to_pandas()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda r: r.estimate("txt"), "arm: found 'txt', expected one of .* \\(nearest: text\\)"),
        (lambda r: r.estimate("text", "town"), "task: found 'town', expected one of .* \\(nearest: towns\\)"),
        (lambda r: r.estimate("text", "towns", "em"), "metric: found 'em', expected one of"),
        (lambda r: lw.task([]), "examples: found none"),
        (lambda r: lw.task([FACTS[0], FACTS[0]]), "found the id '0' more than once"),
        (
            lambda r: lw.task([lw.Example(id="x", group="x", context="", question="?")]),
            "neither answers nor choices",
        ),
        (lambda r: lw.evaluate(tiny_lm(), lw.task(FACTS), []), "wires: found none"),
        (lambda r: lw.evaluate(tiny_lm(), [], ["text"]), "tasks: found none"),
        (lambda r: lw.evaluate(tiny_lm(), lw.task(FACTS), "txt"), "nearest: text"),
        (lambda r: lw.evaluate(tiny_lm(), lw.task(FACTS), limit=0), "limit: found 0"),
        (lambda r: lw.evaluate(tiny_lm(), ["one_hop", lw.task(FACTS, "one_hop")]), "two tasks named 'one_hop'"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(results, call, expected):
    with pytest.raises(lw.UserError, match=expected):
        call(results)
