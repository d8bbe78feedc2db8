"""Runs are compared from their outcomes, on the same examples or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.evaluation.significance import holm
from latentwire.evaluation.statistics import compare
from latentwire.runs.run_comparison import compare_runs
from latentwire.tasks.data_files import digest
from tests.support.command_line import Command
from tests.support.run_folders import answers, drawn_answers, evaluated, parent, trained


def test_a_comparison_of_two_runs_is_that_of_their_outcomes(tmp_path: Path, latentwire: Command) -> None:
    root = tmp_path / "runs"
    a, b = drawn_answers(0.8, 60, 0), drawn_answers(0.5, 60, 1)
    evaluated(root, "after", a)
    evaluated(root, "before", b)
    (found,) = compare_runs(root, ["s/after", "s/before"])
    expected = compare(a, b, "exact_match")
    assert {name: getattr(found.result, name) for name in vars(expected)} == vars(expected)
    assert (found.a, found.b, found.task, found.metric) == ("s/after", "s/before", "one_hop", "exact_match")

    status, out, _ = latentwire("runs", "compare", "s/after", "s/before", "--json", "numbers.json")
    assert status == 0
    assert f"{expected.difference:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}]" in out
    assert f"{expected.resolvable:.3f}" in out  # what the sample resolves stands beside every comparison
    (numbers,) = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["difference"] == expected.difference  # unrounded


def test_several_comparisons_are_holm_corrected_together(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first = drawn_answers(0.6, 40, 0)
    others = [drawn_answers(share, 40, at) for at, share in enumerate((0.5, 0.3, 0.1), start=1)]
    for name, outcomes in zip("abcd", [first, *others], strict=True):
        evaluated(root, name, outcomes)
    found = compare_runs(root, ["s/a", "s/b", "s/c", "s/d"])
    raw = [compare(first, other, "exact_match").p for other in others]
    assert [each.result.p for each in found] == raw
    assert [each.result.p_holm for each in found] == holm(raw)


def test_other_examples_are_refused_with_what_differs(tmp_path: Path, latentwire: Command) -> None:
    root = tmp_path / "runs"
    evaluated(root, "short", answers([1.0] * 20))
    evaluated(root, "long", answers([1.0] * 30))
    status, out, err = latentwire("runs", "compare", "s/short", "s/long")
    assert (status, out) == (2, "")
    assert "one_hop: 10 examples are in s/long only, one_hop/20 among them (20 are in both)" in err
    assert len(err.splitlines()) == 1

    evaluated(root, "elsewhere", answers([1.0] * 20, task="two_hop"))
    with pytest.raises(UserError, match="found one_hop in s/short and two_hop in s/elsewhere"):
        compare_runs(root, ["s/short", "s/elsewhere"])


def test_the_same_ids_with_other_contents_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for stage, sha in (("a", "1" * 64), ("b", "2" * 64)):
        run = evaluated(root, stage, answers([1.0, 0.0] * 10))
        run.write(results={"examples_sha256": {"one_hop": sha}})
    with pytest.raises(UserError, match="one_hop: the examples have the same ids and other contents"):
        compare_runs(root, ["s/a", "s/b"])


def test_an_example_that_one_arm_skipped_is_left_out_of_its_pairs_only(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    whole, skipping = drawn_answers(0.7, 40, 0), drawn_answers(0.4, 40, 1, arm="text:deranged")[:-5]
    evaluated(root, "after", [*whole, *skipping])
    evaluated(root, "before", drawn_answers(0.6, 40, 2))
    (found,) = compare_runs(root, ["s/after:text:deranged", "s/before"])
    assert found.result.n == 35
    (found,) = compare_runs(root, ["s/after:text", "s/before"])
    assert found.result.n == 40


def test_a_changed_outcome_is_noticed_before_it_is_compared(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = evaluated(root, "a", answers([1.0, 0.0] * 10))
    evaluated(root, "b", answers([0.0, 1.0] * 10))
    path = run.folder / "outcomes.jsonl"
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": 1.0'))
    with pytest.raises(UserError, match="found it changed since the run ended"):
        compare_runs(root, ["s/a", "s/b"])


def test_an_arm_that_is_not_there_and_a_training_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    evaluated(root, "a", answers([1.0, 0.0] * 10))
    evaluated(root, "b", answers([0.0, 1.0] * 10, arm="none"))
    trained(root, "fit", seed=0)
    with pytest.raises(UserError, match="found no arm 'txt', expected one of text"):
        compare_runs(root, ["s/a:txt", "s/b"])
    with pytest.raises(UserError, match="is a finetune run without outcomes"):
        compare_runs(root, ["s/a", "s/fit"])
    with pytest.raises(UserError, match="found no run 's/c'"):
        compare_runs(root, ["s/a", "s/c"])
    with pytest.raises(UserError, match="found 1 run, expected two or more"):
        compare_runs(root, ["s/a"])


def seeded(root: Path, study: str, share: float, seeds: range, offset: int) -> None:
    """A study whose stage `after` was evaluated after trainings with these seeds, and whose `plain` was not."""
    evaluated(root, "plain", drawn_answers(0.5, 50, 99), study=study)
    for seed in seeds:
        fit = trained(root, f"fit-seed{seed}", seed, study=study)
        outcomes = drawn_answers(share, 50, offset + seed)
        evaluated(root, f"after-seed{seed}", outcomes, study=study, parents=parent(fit))


def test_two_studies_with_unequal_seeds_are_pooled_over_seeds(tmp_path: Path, latentwire: Command) -> None:
    root = tmp_path / "runs"
    seeded(root, "x", 0.8, range(3), 10)
    seeded(root, "y", 0.4, range(2), 20)
    (found,) = compare_runs(root, ["x/after", "y/after"])
    assert (found.result.seeds_a, found.result.seeds_b, found.result.paired_seeds) == (3, 2, False)
    means = []
    for study, count, offset, share in (("x", 3, 10, 0.8), ("y", 2, 20, 0.4)):
        every = [drawn_answers(share, 50, offset + seed) for seed in range(count)]
        means.append(sum(o.metrics["exact_match"] for one in every for o in one) / (50 * count))
        assert study in found.a + found.b
    assert found.result.difference == pytest.approx(means[0] - means[1])
    assert not found.single_seed

    status, out, _ = latentwire("runs", "compare", "x", "y")
    assert status == 0
    assert "x:after/text" in out
    assert "x:plain/text" in out
    assert "3, 2" in out
    assert "hierarchical bootstrap over seeds and groups" in out
    # The same from a pattern of stages, and from runs that are named one by one.
    (pattern,) = compare_runs(root, ["x/after-seed*", "y/after-seed0+y/after-seed1"])
    assert pattern.result == found.result


def test_the_same_seeds_are_compared_seed_by_seed(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    seeded(root, "x", 0.8, range(3), 10)
    seeded(root, "y", 0.4, range(3), 20)
    (found,) = compare_runs(root, ["x/after", "y/after"])
    assert found.result.paired_seeds


def test_a_trained_arm_with_one_seed_says_so(tmp_path: Path, latentwire: Command) -> None:
    root = tmp_path / "runs"
    seeded(root, "x", 0.8, range(1), 10)
    status, out, _ = latentwire("runs", "compare", "x/after", "x/plain")
    assert status == 0
    assert "SINGLE SEED" in out
    status, out, _ = latentwire("runs", "compare", "x/plain", "x/plain")
    assert "SINGLE SEED" not in out


def sample(place: int, right: float, context: str, choices: list[str], **more: object) -> str:
    """A line of lm-eval's sample log for a multiple-choice document, as version 0.4.13 writes it."""
    arguments = {f"gen_args_{n}": {"arg_0": context, "arg_1": f" {choice}"} for n, choice in enumerate(choices)}
    line = {
        "doc_id": place,
        "doc": {"query": context},
        "target": "0",
        "arguments": arguments,
        "resps": [[["-1.0", "False"]]],
        "filtered_resps": [["-1.0", "False"]],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": hashlib.sha256(context.encode()).hexdigest(),
        "prompt_hash": "",
        "target_hash": "",
        "acc": right,
        "acc_norm": right,
    }
    return json.dumps({**line, **more}) + "\n"


def choice_outcomes(right: list[float], contexts: list[str], choices: list[str]) -> list:
    return [
        replace(
            outcome,
            id=f"{digest(context, *choices)}-{at}",
            group=digest(context),
            metrics={"acc": outcome.metrics["exact_match"]},
        )
        for at, (outcome, context) in enumerate(zip(answers(right, task="piqa"), contexts, strict=True))
    ]


def test_lm_evals_sample_log_is_one_side(tmp_path: Path, latentwire: Command) -> None:
    root, choices = tmp_path / "runs", ["left", "right"]
    contexts = [f"Question {at}?" for at in range(30)]
    ours, theirs = [1.0, 1.0, 0.0] * 10, [1.0, 0.0, 0.0] * 10
    outcomes = choice_outcomes(ours, contexts, choices)
    evaluated(root, "baseline", outcomes)
    log = tmp_path / "results" / "model" / "samples_piqa_2026-11-29T10-11-12.123456.jsonl"
    log.parent.mkdir(parents=True)
    lines = [sample(at, right, contexts[at], choices) for at, right in enumerate(theirs)]
    log.write_text("".join(reversed(lines)))  # paired by place, not by order
    expected = compare(outcomes, choice_outcomes(theirs, contexts, choices), "acc")
    for place in (log, tmp_path / "results"):
        (found,) = compare_runs(root, ["s/baseline", str(place)])
        assert {name: getattr(found.result, name) for name in vars(expected)} == vars(expected)
    (found,) = compare_runs(root, [str(log), str(tmp_path / "results")])
    assert found.result.difference == 0.0

    log.write_text("".join(lines[:-1]))
    status, _, err = latentwire("runs", "compare", "s/baseline", log)
    assert status == 2
    assert "1 of the run's 30 examples" in err

    other = [*lines[:-1], sample(29, 1.0, "Another question?", choices)]
    log.write_text("".join(other))
    status, _, err = latentwire("runs", "compare", "s/baseline", log)
    assert status == 2
    assert "1 documents of the lm-eval log have another content" in err

    log.write_text('{"answer": 1}\n')
    status, _, err = latentwire("runs", "compare", "s/baseline", log)
    assert status == 2
    assert "line 1: found no sample" in err


def test_a_filter_of_a_log_is_chosen_by_name(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    contexts = [f"Sum {at}" for at in range(10)]
    outcomes = [
        replace(outcome, id=f"{digest(context, '7')}-{at}")
        for at, (outcome, context) in enumerate(zip(answers([1.0, 0.0] * 5, task="gsm8k"), contexts, strict=True))
    ]
    evaluated(root, "baseline", outcomes)
    log = tmp_path / "samples_gsm8k_2026-11-29T10-11-12.123456.jsonl"
    arguments = {"arguments": {"gen_args_0": {"arg_0": "", "arg_1": {"until": ["\n"]}}}, "target": "7"}
    lines = [
        sample(at, 0.0, context, [], filter=name, metrics=["exact_match"], exact_match=score, **arguments)
        for name, score in (("strict-match", 0.0), ("flexible-extract", 1.0))
        for at, context in enumerate(contexts)
    ]
    log.write_text("".join(lines))
    (strict,) = compare_runs(root, ["s/baseline", str(log)])
    (flexible,) = compare_runs(root, ["s/baseline", f"{log}:flexible-extract"])
    assert (strict.result.difference, flexible.result.difference) == (0.5, -0.5)
    with pytest.raises(UserError, match="found no filter 'exact'"):
        compare_runs(root, ["s/baseline", f"{log}:exact"])
