"""An evaluation and an audit for the screen, as tables and sentences in order, and the numbers of `--json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from latentwire.evaluation import costs, score_tables, wire_tables
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.audit import Audit
from latentwire.evaluation.baseline import against_baseline
from latentwire.evaluation.costs import Costs
from latentwire.evaluation.encoded import wording
from latentwire.evaluation.evaluate import Evaluation
from latentwire.evaluation.gaps import Gap, gaps
from latentwire.evaluation.summarize import summarize
from latentwire.lm.model import LM
from latentwire.tasks.base import Task


@dataclass(frozen=True)
class Report:
    """Results of arms on tasks, with costs and gaps of the wires that send latents.

    Attributes:
        readers: models by the name after an arm's `@`; None for arms without one.
        tasks: what was asked.
        arms: what was evaluated.
        result: outcomes and floors.
        spent: costs by arm that sends latents, and task.
        closed: the gap to the text by arm and task; empty where nothing sends latents.
    """

    readers: Mapping[str | None, LM]
    tasks: Sequence[Task]
    arms: Sequence[Arm]
    result: Evaluation
    spent: Mapping[str, Mapping[str, Costs]]
    closed: Mapping[str, Mapping[str, Gap]]

    @classmethod
    def of(
        cls,
        readers: Mapping[str | None, LM],
        tasks: Sequence[Task],
        arms: Sequence[Arm],
        result: Evaluation,
        limit: int | None,
    ) -> Report:
        """Measures the costs of the arms that send latents, on the first `limit` examples."""
        sending = [arm for arm in arms if arm.wire.compresses and arm.variant is None]
        spent = {
            arm.label: {each.name: costs.measure(readers[arm.reader], each, arm, limit=limit) for each in tasks}
            for arm in sending
        }
        closed = gaps(result.outcomes, result.floors) if sending else {}
        return cls(readers, tasks, arms, result, spent, closed)

    def parts(self, model: str) -> Iterator[Table | str]:
        """Tables and sentences in order. model: as the command line names it."""
        result, leaking = self.result, [arm.label for arm in self.arms if arm.leaks]
        aware = [arm.label for arm in self.arms if arm.wire.question_aware]
        yield score_tables.scores(result, leaking, aware)
        yield from wire_tables.followed(result.outcomes)
        if self.closed:
            yield wire_tables.gap_table(self.closed)
        if self.spent:
            yield wire_tables.cost_table(self.spent)
            if not aware:
                yield of_questions(aware)
        if (wrong := score_tables.errors(result)) is not None:
            yield wrong
        for each in self.tasks:
            if each.remark:
                yield each.remark
            if sentence := wording(self.readers[None], each, model):
                yield sentence
        for name, count in result.unstable.items():
            if count:
                yield f"{name}: {count} prompts end in tokens that the answer would change; these stay causal."
        for (label, name), types in result.partners.items():
            yield partner_sentence(f"{name} over {label}", types)
        for (label, name), count in result.skipped.items():
            yield f"{name}: {count} examples that {label} could not change are left out of it."
        if aware:
            yield of_questions(aware)
        if leaking:
            yield f"LEAKS: under {', '.join(leaking)} a scored token sees itself; its scores are no reading."

    def numbers(self) -> dict[str, Any]:
        """`metrics` and `comparisons`, and `costs` and `gaps` where there are any."""
        written: dict[str, Any] = {
            "metrics": summarize(self.result.outcomes),
            "comparisons": [pair.to_json() for pair in against_baseline(self.result.outcomes)],
        }
        if self.spent:
            written["costs"] = {arm: {at: e.to_json() for at, e in of.items()} for arm, of in self.spent.items()}
        if self.closed:
            written["gaps"] = {arm: {at: asdict(gap) for at, gap in of.items()} for arm, of in self.closed.items()}
        return written


def partner_sentence(which: str, types: Mapping[str, int]) -> str:
    """Where the contexts of a deranged arm come from. types: see `Arm.partner_types`."""
    return (
        f"{which}: {types['same type']:,} examples get the context of a question that wants the same type of "
        f"answer, {types['any type']:,} that of any other; {types['none']:,} have none without their answer in it."
    )


def of_questions(aware: Sequence[str]) -> str:
    """Which arms' messages were encoded with the question in sight, or that none were."""
    if aware:
        return f"The question was in sight when {', '.join(aware)} was encoded; no other message depends on it."
    return "Contexts are compressed without the question: no message depends on what will be asked."


def audited(report: Audit) -> Iterator[Table | str]:
    """What an audit found, what it looked at and what not, its verdict last."""
    yield f"\n{report.wire}"
    yield f"loss of one sample, nats a token: {', '.join(f'{n} {loss:.2f}' for n, loss in report.losses.items())}"
    first, text = report.first_tokens[0]
    yield f"first supervised token: {first!r} of {text!r} ({len(report.first_tokens)} answers looked at)"
    yield f"random labels: {report.random_loss:.2f} nats a token, entropy {report.entropy:.2f}"
    gaps = {
        "prefill and decoding against one full pass": report.decode_gap,
        "causal reading against the model's own forward": report.own_gap,
        "a document in a packed row against it alone": report.packed_gap,
        "the same through latentwire.blocks": report.blocks_gap,
    }
    for name, gap in gaps.items():
        if gap is not None:
            yield f"{name}: {gap:.1e} of the largest value"
    yield score_tables.audit_table(report)
    if report.layers:
        layers = {sight.layer for sight in report.layers}
        lengths = sorted({sight.tokens for sight in report.layers})
        pairs = sum(sight.pairs for sight in report.layers)
        yield (
            f"looked at: {pairs:,} pairs of a state and a position over {len(layers)} layers, in rows of "
            f"{' and '.join(f'{length:,}' for length in lengths)} tokens"
        )
    if report.not_looked_at:
        yield f"not looked at: {'; '.join(report.not_looked_at)}"
    yield from (f"WARNING: {sentence}" for sentence in report.warnings)
    yield from report.problems
    yield "FAILED" if report.problems else "passed: nothing leaks, nothing sees what its mask hides"
