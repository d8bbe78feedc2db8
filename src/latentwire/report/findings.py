"""What was audited and what was found: leaks, failed gates and stages, unstable prompts, examples left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from latentwire.evaluation.audit_file import PATTERN, read_audits
from latentwire.evaluation.eval_report import partner_sentence
from latentwire.report.gathered import Gathered
from latentwire.report.wording import counted, estimated, listed, plain
from latentwire.runs.store import ENDED, LOG

Weight = Literal["problem", "caution", "checked"]


@dataclass(frozen=True)
class AuditFinding:
    """One finding: `problem` (a number is wrong or missing), `caution` (read with care), `checked` (it holds)."""

    weight: Weight
    about: str
    text: str


def findings(study: Gathered) -> list[AuditFinding]:
    """All findings of a study, problems first."""
    parts = (_leaks, _audits, _stages, _gates, _trainings, _answers, _made)
    found = [finding for part in parts for finding in part(study)]
    order: tuple[Weight, ...] = ("problem", "caution", "checked")
    return sorted(found, key=lambda each: order.index(each.weight))


def _leaks(study: Gathered) -> Iterator[AuditFinding]:
    leaking = [f"{stage}/{arm}" for stage, each in study.evaluations().items() for arm in each.get("leaks", ())]
    if leaking:
        text = f"In {listed(leaking)} scored tokens see themselves: these numbers measure no reading."
        yield AuditFinding("problem", "Leaks", text)
    elif study.evaluations():
        yield AuditFinding("checked", "Leaks", "No evaluated arm lets a scored token see itself.")
    aware = [f"{stage}/{arm}" for stage, each in study.evaluations().items() for arm in each["question_aware"]]
    if aware:
        text = f"The question was in sight when {listed(aware)} was encoded: no compressed context, but an answer."
        yield AuditFinding("caution", "Question in sight", text)
    for stage, run in study.runs.items():
        path = run.folder / LOG
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in dict.fromkeys(line for line in lines if line.startswith("audit of ")):
                yield AuditFinding("checked", f"Audit before {stage}", f"{line[0].upper()}{line[1:]}.")


def _audits(study: Gathered) -> Iterator[AuditFinding]:
    """What `latentwire audit --json` has left in the study's folder."""
    for path in sorted(study.study.folder.glob(PATTERN)):
        found = read_audits(path)
        of = found["model"] + (f" with {found['adapter']}" if found.get("adapter") else "")
        for each in found["audits"]:
            about = f"Audit of {each['wire']} on {of}"
            for weight, sentences in (("problem", each["problems"]), ("caution", each["warnings"])):
                for sentence in sentences:
                    yield AuditFinding(weight, about, f"{sentence[0].upper()}{sentence[1:]}.")  # type: ignore[arg-type]
            if not each["problems"]:
                pairs = sum(layer["pairs"] for layer in each["layers"])
                left = f" Not looked at: {'; '.join(each['not_looked_at'])}." if each["not_looked_at"] else ""
                text = f"Nothing sees what its mask hides, in {pairs:,} pairs of a state and a position."
                yield AuditFinding("checked", about, text + left)


def _stages(study: Gathered) -> Iterator[AuditFinding]:
    for name, stage in study.summary["stages"].items():
        run = study.runs.get(name)
        if stage["status"] in ("failed", "rejected"):
            why = (run.record.error or "").splitlines()[:1] if run else []
            yield AuditFinding("problem", name, f"The stage is {stage['status']}{': ' + why[0] if why else ''}.")
        elif stage["status"] != "done":
            yield AuditFinding("caution", name, f"The stage is not done: {stage['status']}.")
        if stage["run"] is not None and run is None:
            yield AuditFinding(
                "caution", name, f"Its run {stage['run']} is no longer in the folder: no samples, no curves."
            )
        if run is not None and len(run.record.times) > 1:
            yield AuditFinding("caution", name, f"Carried out in {len(run.record.times)} attempts.")
    verified = [name for name, run in study.runs.items() if run.status in ENDED]
    if verified:
        text = f"Outcomes, metrics and diagnostics of {counted(len(verified), 'run')} have their recorded SHA-256."
        yield AuditFinding("checked", "Hashes", text)
    for names in study.derived.get("repeats", []):
        yield AuditFinding("caution", "Repeats", f"{listed(names)} resolve to the same configuration.")


def _gates(study: Gathered) -> Iterator[AuditFinding]:
    for gate in study.derived.get("gates", []):
        held = {None: "has not been judged", True: "held", False: "did not hold"}[gate["held"]]
        bound = f"at most {gate['at_most']}" if gate["at_least"] is None else f"at least {gate['at_least']}"
        weight: Weight = {None: "caution", True: "checked", False: "problem"}[gate["held"]]  # type: ignore[assignment]
        yield AuditFinding(weight, f"Gate {gate['name']}", f"It {held}: {estimated(gate)}, expected {bound}.")
    for name, results in study.derived.get("finetunings", {}).items():
        for each in results.get("accept", ()):
            text = f"{each['gate']} of {each['reader']}: {estimated(each)}, n = {each['n']:,}."
            yield AuditFinding("checked" if each["held"] else "problem", f"Acceptance of {name}", text)


def _trainings(study: Gathered) -> Iterator[AuditFinding]:
    for name, results in study.derived.get("finetunings", {}).items():
        if results.get("best_step") == 0:
            text = "Its best checkpoint is that of step 0, the untrained weights: training improved nothing."
            yield AuditFinding("caution", name, text)
        if (peak := results.get("peak_accuracy")) is not None and results.get(
            "final_accuracy", peak
        ) < peak - 0.01:
            text = (
                f"First tokens were right in {plain(peak)} at their peak (step {results['peak_step']:,}) and in "
                f"{plain(results['final_accuracy'])} at the end."
            )
            yield AuditFinding("caution", name, text)
        if lost := {key: count for key, count in (results.get("skipped") or {}).items() if count}:
            parts = [f"{key} {count:,} times" for key, count in lost.items()]
            yield AuditFinding("caution", name, f"Objectives left out because memory ran short: {listed(parts)}.")


def _answers(study: Gathered) -> Iterator[AuditFinding]:
    unstable: dict[str, int] = {}
    for stage, each in study.evaluations().items():
        for task, count in each.get("unstable", {}).items():
            unstable[task] = max(count, unstable.get(task, 0))
        for arm, of in each.get("skipped", {}).items():
            parts = [f"{count:,} of {task}" for task, count in of.items()]
            yield AuditFinding(
                "caution", f"{stage}/{arm}", f"Left out, for its variant cannot change them: {listed(parts)}."
            )
        for arm, by_task in each.get("partners", {}).items():
            for task, types in by_task.items():
                yield AuditFinding("checked", f"{stage}/{arm}", partner_sentence(task, types))
    if counts := [f"{count:,} of {task}" for task, count in unstable.items() if count]:
        text = f"Prompts that end in tokens which the answer would change (they stay causal): {listed(counts)}."
        yield AuditFinding("caution", "Unstable prompts", text)
    elif unstable:
        yield AuditFinding("checked", "Unstable prompts", "No prompt ends in tokens that an answer would change.")
    for reading, by_task in study.derived.get("invalid", {}).items():
        shares = [f"{plain(number['value'])} of {task}" for task, number in by_task.items() if number["value"] > 0]
        if shares:
            yield AuditFinding(
                "caution", reading, f"Answers that could not be read, and count as wrong: {listed(shares)}."
            )


def _made(study: Gathered) -> Iterator[AuditFinding]:
    runs = list(study.runs.values())
    if any(run.record.git and run.record.git.get("changed") for run in runs):
        yield AuditFinding("caution", "Source", "The package's source had changes that were not committed.")
    versions = {run.record.versions.get(name) for run in runs for name in ("latentwire",)}
    if len(versions) > 1:
        yield AuditFinding(
            "caution", "Versions", f"Stages were carried out with versions {listed(sorted(map(str, versions)))}."
        )
