"""Finished studies made by hand: runs with their hashes, outcomes that follow a rule, and a summary of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentwire.evaluation.outcomes import Outcome, write_outcomes
from latentwire.evaluation.prompts_kept import CONTEXT, PROMPTS, QUESTION
from latentwire.evaluation.statistics import compare, members
from latentwire.evaluation.summarize import by_arm, summarize
from latentwire.runs.store import Parent, Record, Run
from latentwire.studies.claims import Effects
from latentwire.studies.derived import derive

TASKS = ("one_hop", "later", "choices/home", "choices/job")
FLOORS = {task: {"type_floor": 0.2} for task in TASKS}
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=2"><!-- \u2028 "\' \\'
"""What one reading says to the first example; it must be shown, and never run."""
Rule = Callable[[int], bool]
ARMS: dict[str, dict[str, tuple[str, Rule]]] = {
    "baseline": {"text": ("text", lambda at: at % 10 != 0), "none": ("none", lambda at: at % 25 == 0)},
    "ablated": {
        "text": ("text,mask=prefix", lambda at: at % 3 == 1),
        "none": ("none,mask=prefix", lambda at: at % 25 == 0),
    },
    "after": {
        "text": ("text,mask=prefix", lambda at: at % 4 != 0),
        "none": ("none", lambda at: at % 25 == 0),
        "latents": ("embedded:heron-4x", lambda at: at % 2 == 0),
    },
}
NEEDS = {"baseline": [], "ablated": [], "ft": [], "after": ["ft"]}
COMPARED = (
    ("damage", "macro", "ablated/text", "baseline/text", True),
    ('said "after" <b>minus</b> before', "macro", "after/text", "baseline/text", False),
    ("latents on later", "later", "after/latents", "after/text", False),
)


def report_study(root: Path, name: str = "demo", *, examples: int = 40, seed: int = 0, words: str = "") -> Path:
    """A study's folder below `root`, with `examples` for each of its four tasks.

    Args:
        seed: what shifts the rules by which arms are right.
        words: what is added to every context, for studies of other or of longer texts.
    """
    runs = {stage: _evaluation(root, name, stage, examples, seed, words) for stage in ("baseline", "ablated")}
    runs["ft"] = _training(root, name)
    runs["after"] = _evaluation(root, name, "after", examples, seed, words, runs["ft"])
    ordered = {stage: runs[stage] for stage in NEEDS}
    summary = _summary(name, ordered)
    folder = root / name
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def texts(task: str, at: int, words: str = "") -> tuple[str, str, str]:
    """Context, question and right answer of an example."""
    who = f"Person{at}"
    context = f"{who} lives in Town{at}. Other{at} lives in Village{at}. <i>Not markup</i> & {task}.{words}"
    return context, f"Where does {who} live?", f"Town{at}"


def _outcomes(stage: str, examples: int, seed: int) -> Iterator[Outcome]:
    for task in TASKS:
        metric = "acc" if "/" in task else "exact_match"
        for arm, (_, rule) in ARMS[stage].items():
            for at in range(examples):
                right = rule(at + seed)
                said = f"Town{at}" if right else HOSTILE if at == 0 else f"Village{at}"
                error = None if right or "/" in task else "wrong person" if at % 2 else "not in the passage"
                yield Outcome(
                    task=task,
                    arm=arm,
                    id=f"{task}/{at:04d}",
                    group=f"{task}/{at:04d}",
                    prediction=said,
                    metrics={metric: float(right), "nll": 0.1234 + at},
                    error=error,
                    tokens=12 if arm == "none" else 30,
                )


def _prompts(stage: str, examples: int, words: str) -> Iterator[str]:
    whole = f"<bos>{CONTEXT}\nQuestion: {QUESTION}\nAnswer:"
    for task in TASKS:
        for at in range(examples):
            context, question, gold = texts(task, at, words)
            arms: dict[str, Any] = {
                "text": {"pieces": [[whole, 0 if "mask" in ARMS[stage]["text"][0] else -1, 30]]},
                "none": {"pieces": [[f"<bos>Question: {QUESTION}\nAnswer:", -1, 12]]},
            }
            if "latents" in ARMS[stage]:
                arms["latents"] = {"pieces": [[f"Question: {QUESTION}\nAnswer:", -1, 12]], "memory": 18}
            line = {
                "task": task,
                "id": f"{task}/{at:04d}",
                "context": context,
                "question": question,
                "gold": [gold],
                "choices": [gold, f"Village{at}"] if "/" in task else [],
                "arms": arms,
            }
            yield json.dumps(line) + "\n"


def _run(root: Path, study: str, stage: str, kind: str, parent: Run | None = None) -> Run:
    parents = {} if parent is None else {"ft": Parent(run=parent.record.run, identity=parent.record.identity)}
    record = Record(
        run="",
        study=study,
        stage=stage,
        kind=kind,
        identity="0" * 64,
        configuration={},
        seeds={},
        inputs={},
        parents=parents,
        versions={"latentwire": "0", "torch": "0"},
        git=None,
        machine={},
    )
    return Run.create(root, record)


def _evaluation(
    root: Path, study: str, stage: str, examples: int, seed: int, words: str, parent: Run | None = None
) -> Run:
    run = _run(root, study, stage, "evaluate", parent)
    with run.work():
        outcomes = list(_outcomes(stage, examples, seed))
        write_outcomes(run.folder / "outcomes.jsonl", outcomes)
        (run.folder / PROMPTS).write_text("".join(_prompts(stage, examples, words)), encoding="utf-8")
        (run.folder / "metrics.json").write_text(json.dumps(summarize(outcomes)), encoding="utf-8")
        run.finish({"floors": FLOORS, "leaks": [], "question_aware": [], "unstable": {}, "skipped": {}})
    return run


def _training(root: Path, study: str) -> Run:
    run = _run(root, study, "ft", "finetune")
    with run.work():
        lines: list[dict[str, Any]] = []
        for step in range(0, 60, 5):
            norms = {"answer": 1.0, "imitate": 0.5}
            lines.append(
                {"step": step, "loss": 3 / (step + 1), "gradient_norm": 2.0, "objective_gradient_norms": norms}
            )
            lines.append(
                {"step": step, "eval_loss": 2 / (step + 1) + 0.01 * step, "eval_first_token_accuracy": 0.5}
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.folder / "diagnostics.jsonl").write_text(text, encoding="utf-8")
        (run.folder / "log.txt").write_text("audit of text and its rows: nothing leaks\n", encoding="utf-8")
        run.finish(RESULTS)
    return run


RESULTS: dict[str, Any] = {
    "steps": 60,
    "stopped": "plateau: 3 evaluations without 0.002 nats of improvement",
    "best_step": 15,
    "best_loss": 0.275,
    "peak_accuracy": 0.5,
    "peak_step": 0,
    "final_accuracy": 0.5,
    "bests": {"loss": {"value": 0.275, "step": 15}},
}


def _summary(name: str, runs: dict[str, Run]) -> dict[str, Any]:
    readings: dict[str, list[Outcome]] = {
        f"{stage}/{arm}": outcomes for stage in ARMS for arm, outcomes in by_arm(_read(runs[stage])).items()
    }
    comparisons, more = [], {}
    for title, task, a, b, primary in COMPARED:
        pair = compare(members(readings[a], task), members(readings[b], task))
        sides = {"name": title, "task": task, "metric": "primary", "a": a, "b": b}
        numbers = {key: getattr(pair, key) for key in ("difference", "low", "high", "p", "resolved")}
        comparisons.append({**sides, **numbers})
        seeded = "after" in a or "after" in b
        more[title] = {
            "primary": primary,
            "p_holm": pair.p if primary else None,
            "resolvable": pair.resolvable,
            "n": pair.n,
            "groups": pair.groups,
            "single_seed": seeded,
        }
    effects = Effects.model_validate(
        {
            "baseline": "baseline/text",
            "ablated": "ablated/text",
            "after": {"ft": {"ablated": "after/text", "plain": "after/text"}},
        }
    )
    evaluation = {
        "leaks": [],
        "question_aware": [],
        "unstable": {},
        "skipped": {},
        "partners": {},
        "floors": FLOORS,
    }
    sizes = {
        arm: {task: {"series": kind, "bytes": 100.0 * count, "latents": latents, "facts": None} for task in TASKS}
        for arm, kind, count, latents in (("text", "text", 1, None), ("latents", "self, anchors", 40, 18.0))
    }
    reported: Sequence[str] = ("one_hop", "macro")
    return {
        "study": name,
        "stages": {
            stage: {"run": run.record.run, "status": "done", "metrics": run.metrics()}
            for stage, run in runs.items()
        },
        "comparisons": comparisons,
        "derived": {
            "comparisons": more,
            "effects": [asdict(effect) for effect in derive(effects, reported, readings, FLOORS)],
            "gates": [],
            "repeats": [],
            "invalid": {},
            "oracles": {},
            "agreement": {},
            "finetunings": {"ft": RESULTS},
            "evaluations": {stage: {**evaluation, "sizes": sizes if stage == "after" else {}} for stage in ARMS},
            "outline": {
                "model": "embedded:heron",
                "split": "test",
                "limit": None,
                "tasks": list(TASKS),
                "seeds": [0],
                "stages": {
                    stage: {
                        "kind": run.record.kind,
                        "needs": NEEDS[stage],
                        "beginning": "embedded:heron",
                        "arms": {arm: wire for arm, (wire, _) in ARMS.get(stage, {}).items()},
                    }
                    for stage, run in runs.items()
                },
            },
        },
    }


def _read(run: Run) -> list[Outcome]:
    path = run.folder / "outcomes.jsonl"
    return [Outcome.from_json(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
