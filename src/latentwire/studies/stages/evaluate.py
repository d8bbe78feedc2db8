"""A stage that lets several arms answer the study's tasks, all on the same examples."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from latentwire.errors import UserError, one_of
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import wording
from latentwire.evaluation.evaluate import ready
from latentwire.evaluation.outcomes import Outcome, read_outcomes, write_outcomes
from latentwire.evaluation.prompts_kept import PROMPTS, KeptPrompts, lines_of
from latentwire.evaluation.prompts_shown import departures
from latentwire.evaluation.several_readers import evaluate_readers
from latentwire.evaluation.sizes import message_sizes
from latentwire.evaluation.summarize import summarize
from latentwire.files import write_atomically
from latentwire.lm.decoding import DecodingSettings
from latentwire.lm.halving import Halving
from latentwire.lm.loading import processor
from latentwire.lm.model import LM
from latentwire.runs.log import duration
from latentwire.runs.store import METRICS, OUTCOMES
from latentwire.studies.model_loader import ModelLoader
from latentwire.studies.stages.base import (
    Description,
    Name,
    Stage,
    StageWork,
    StudyContext,
    hashed_wires,
    known,
    trained_source,
)
from latentwire.studies.stages.study_arms import TrainedArm, arm_label, read_arm, reader_of, without_reader
from latentwire.wires.latent.latent_config import read_config
from latentwire.wires.latent.latent_wire import Latent, locate
from latentwire.wires.relay import Relay

_SUMMARISED = ("leaks", "question_aware", "unstable", "skipped", "partners", "floors", "sizes")


class Evaluate(Stage):
    """Score the study's tasks over one or several arms; all arms answer the same examples.

    Attributes:
        model: The model that reads; the study's if not given.
        arms: By name, a wire as the command line spells it, or `stage:NAME[:VARIANT]` for a trained one. Either
            may end in `@MODEL`, the model that reads instead. Arms that differ only in their readers also get a
            joint answer and their oracle, as arms of their own: `joint(A + B)` and `union(A + B)`.
        begin_suppress_tokens: Tokens, as text, with which no generated answer may begin. The metrics
            `first_token_top1` and `first_token_top5` rank the other tokens.
        decoding: By arm, how its answers are generated, where that is not as the task says.
    """

    described: ClassVar[str] = "an evaluation"
    section: ClassVar[Literal["evaluations", "finetunings"]] = "evaluations"

    kind: Literal["evaluate"]
    model: str | None = None
    arms: dict[Name, str] = Field(min_length=1)
    begin_suppress_tokens: tuple[str, ...] = ()
    decoding: dict[Name, DecodingSettings] = Field(default_factory=dict)

    @field_validator("arms")
    @classmethod
    def _spelled(cls, value: dict[str, str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for name, text in value.items():
            try:
                labels[name] = arm_label(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return labels

    @model_validator(mode="after")
    def _each_arm_once(self) -> Self:
        for name in self.decoding:
            if name not in self.arms:
                raise ValueError(f"decoding: found {name!r}, expected {one_of(name, self.arms)}")
        seen: list[tuple[str, DecodingSettings | None]] = []
        for name, label in self.arms.items():
            if (arm := (label, self.decoding.get(name))) in seen:
                raise ValueError(
                    f"arms.{name}: found the wire {label!r} a second time, expected every arm's wire once, or "
                    "another decoding"
                )
            seen.append(arm)
        return self

    @model_validator(mode="after")
    def _one_reader(self) -> Self:
        if self.model is not None and self.start_from is not None:
            raise ValueError("found both model and start_from, expected one of them: whose weights read?")
        return self

    def read(self, trained: Callable[[str], Path] | None = None, model: str = "") -> list[Arm]:
        """The arms, parsed; see `stages.study_arms.read_arm`. `model` is the one that reads by default."""
        parsed = ((name, read_arm(text, model, trained)) for name, text in self.arms.items())
        return [replace(arm, decoding=self.decoding.get(name)) for name, arm in parsed if arm is not None]

    def evaluated_arms(self) -> Mapping[str, str]:
        derived = {name: " + ".join(self.arms[part] for part in parts) for name, parts in self._derived().items()}
        return {**self.arms, **derived}

    def read_together(self) -> list[tuple[str, ...]]:
        alike: dict[tuple[str, str], list[str]] = {}
        for name, text in self.arms.items():
            alike.setdefault((without_reader(text), repr(self.decoding.get(name))), []).append(name)
        return [tuple(names) for names in alike.values() if len(names) > 1]

    def _derived(self) -> dict[str, tuple[str, ...]]:
        """The arms made of what several readers of one wire answer, by name."""
        return {
            f"{kind}({' + '.join(names)})": names for names in self.read_together() for kind in ("union", "joint")
        }

    def _readers(self) -> list[str]:
        """The models after its arms' `@`."""
        named = dict.fromkeys(reader_of(text) for text in self.arms.values())
        return [reader for reader in named if reader is not None and reader != self.model]

    def needs(self) -> list[str]:
        wires = [named.stage for _, named in self._trained_arms()]
        return list(dict.fromkeys([*super().needs(), *wires]))

    def loads(self) -> list[str]:
        return ([self.model] if self.model else []) + self._relay_sources() + self._readers()

    def finished_wires(self) -> list[str]:
        return [arm.wire.path for arm in self.read() if isinstance(arm.wire, Latent)]

    def model_of(self, study_model: str) -> str:
        return self.model or study_model

    def _trained_arms(self) -> list[tuple[str, TrainedArm]]:
        """Its arms over wires that earlier stages train, by name."""
        parsed = ((name, TrainedArm.parse(text)) for name, text in self.arms.items())
        return [(name, named) for name, named in parsed if named is not None]

    def _relay_sources(self) -> list[str]:
        """The models that write for its relays."""
        wires = (arm.wire for arm in self.read())
        return list(dict.fromkeys(wire.source for wire in wires if isinstance(wire, Relay)))

    def check_references(self, name: str, stages: Mapping[str, Stage], model: str) -> None:
        super().check_references(name, stages, model)
        wires = {other: wire for other, stage in stages.items() if (wire := stage.trained_wire) is not None}
        own = self.model_of(model)
        readings = [
            (without_reader(text), reader_of(text) or own, self.decoding.get(arm))
            for arm, text in self.arms.items()
        ]
        for at, (arm, text) in enumerate(self.arms.items()):
            if readings[at] in readings[:at]:
                raise UserError(
                    f"stages.{name}.arms.{arm}: found {text!r} beside the same arm without a reader, which "
                    f"{own} reads anyway, expected every arm once."
                )
        for arm, named in self._trained_arms():
            key = f"stages.{name}.arms.{arm}"
            if not wires:
                raise UserError(f"{key}: found {self.arms[arm]!r}, but no stage of this study trains a wire.")
            known(key, named.stage, wires, "a wire stage")
            reader, readable = named.reader or own, wires[named.stage].adapters
            if reader not in readable:
                expected = f"a reader of {named.stage}: {', '.join(readable)}"
                raise UserError(f"{key}: found {reader} to read, expected {expected}.")

    def describe(self, context: StudyContext) -> Description:
        reader, relays = self.model_of(context.model), self._relay_sources()
        weights = {} if self.start_from else {"model": context.weights[reader]}
        weights |= {f"relay {name}": context.weights[name] for name in relays}
        readers = [name for name in self._readers() if name != reader]
        weights |= {f"reader {name}": context.weights[name] for name in readers}
        decoded = {
            task.name: task.decoding.model_dump(exclude_none=True) for task in context.tasks if task.decoding
        }
        instructed = {task.name: task.instruction for task in context.tasks if task.instruction is not None}
        finished = self.finished_wires()
        sources = [read_config(locate(path)).source for path in finished]
        return Description(
            weights=weights,
            data=context.task_hashes,
            files=context.task_files,
            wires=hashed_wires(finished),
            configuration={
                "split": context.split,
                "limit": context.limit,
                "tasks": list(context.task_hashes),
                "dtype": context.dtype or _default_dtype(),
                **({"task_decoding": decoded} if decoded else {}),
                **({"task_instructions": instructed} if instructed else {}),
            },
            computed_by=[reader, *relays, *readers, *sources],
        )

    @classmethod
    def check_all(cls, stages: Mapping[str, Self], context: StudyContext, models: ModelLoader) -> None:
        """Tokenize and measure every example under every arm, once for each model that reads.

        The model is read as it is: finetuning changes weights only, so what fits it fits every checkpoint of it.
        """
        arms: dict[str, dict[str, Arm]] = {}
        suppressed: dict[str, list[str]] = {}
        for stage in stages.values():
            own = stage.model_of(context.model)
            for arm in stage.read(model=own):
                reader = arm.reader or own
                alone = replace(arm, reader=None)
                arms.setdefault(reader, {})[alone.label] = alone
                suppressed.setdefault(reader, []).extend(stage.begin_suppress_tokens)
        # The model that is in memory already comes first.
        for model in sorted(arms, key=lambda name: not models.holds((name, None, "best"))):
            lm = models.load((model, None, "best"))
            models.prepare_sources(lm, arms[model].values())
            ready(
                lm,
                context.tasks,
                list(arms[model].values()),
                split=context.split,
                limit=context.limit,
                begin_suppress_tokens=suppressed[model],
            )

    def ready_with(self, context: StudyContext, models: ModelLoader) -> bool:
        return models.holds(trained_source(self, context))

    def run(self, work: StageWork) -> dict[str, Any]:
        """Answer task by task, keeping the outcomes of every finished task, and write `metrics.json`.

        Returns:
            `floors` and `examples_sha256` of the tasks, `unstable` prompts (see `evaluation.evaluate.Evaluation`),
            `skipped` (by arm and task, how many examples the arm's variant could not change), `partners` of
            deranged examples (see `evaluation.arms.Arm.partner_types`), the arms that are `leaks` or
            `question_aware`, `sizes` by arm and task (`evaluation.sizes.Size`), `tokens` and `seconds`.

        Raises:
            UserError: A prompt is longer than the model.
        """
        context, log, folder, group = work.context, work.log, work.folder, work.group
        lm = work.models.load(trained_source(self, context))
        wires = self.read(work.models.wire, self.model_of(context.model))
        others = dict.fromkeys(wire.reader for wire in wires if wire.reader is not None)
        readers: dict[str | None, LM] = {None: lm}
        for reader, model in work.models.beside(list(others)).items():
            readers[reader] = model
        for name, model in readers.items():
            work.models.prepare_sources(model, [wire for wire in wires if wire.reader == name])
        by_name = dict(zip(self.arms, wires, strict=True))
        names = {wire.label: name for name, wire in by_name.items()}
        for derived, parts in self._derived().items():
            labels = " + ".join(by_name[part].label for part in parts)
            names[f"{derived.partition('(')[0]}({labels})"] = derived
        examples = {task.name: len(task.examples(context.split, context.limit)) for task in context.tasks}
        outcomes = group.told(_finished(folder, examples.keys()) if group.leads else [])
        lines = [outcome.to_json() for outcome in outcomes]
        finished = {outcome.task for outcome in outcomes}
        prompts = lines_of(folder / PROMPTS, finished) if group.leads else []
        processor.remark(lm.device, log, bfloat16=lm.model.dtype == torch.bfloat16)
        for sentence in departures(readers, wires):
            log(sentence)
        for task in context.tasks:
            if task.remark:
                log(task.remark)
            if remark := wording(lm, task, lm.name):
                log(remark)
        # With the examples that an arm skips, as progress counts them.
        total = len(wires) * sum(examples.values())
        done = len(wires) * sum(examples[task] for task in finished)
        if done:
            log(f"{done:,} of {total:,} answers are there already")
        floors: dict[str, dict[str, float]] = {}
        unstable: dict[str, int] = {}
        partners: dict[str, dict[str, dict[str, int]]] = {}
        halving = Halving(log)
        started = time.monotonic()
        with log.progress(folder.parent.name, "answers") as progress:

            def answered(arm: str, task: str, count: int) -> None:
                nonlocal done
                done += count
                progress(done, total)

            for task in context.tasks:
                # Without wires it only tokenizes and counts: an earlier attempt's outcomes do not hold the counts.
                left = [] if task.name in finished else wires
                kept = KeptPrompts()
                result = evaluate_readers(
                    readers,
                    [task],
                    left,
                    split=context.split,
                    limit=context.limit,
                    progress=answered,
                    begin_suppress_tokens=self.begin_suppress_tokens,
                    kept=kept if left else None,
                    group=group,
                    halving=halving,
                )
                for name, arm in by_name.items():
                    if types := arm.partner_types(task.examples(context.split, context.limit), task.name):
                        partners.setdefault(name, {})[task.name] = types
                floors |= result.floors
                unstable |= result.unstable
                if left:
                    fresh = [replace(outcome, arm=names[outcome.arm]) for outcome in result.outcomes]
                    outcomes += fresh
                    lines += [outcome.to_json() for outcome in fresh]
                    prompts += kept.lines(task.name, names)
                    if group.leads:
                        write_atomically(folder / PROMPTS, "".join(prompts))
                        write_atomically(folder / OUTCOMES, "".join(f"{line}\n" for line in lines))
        if not group.leads:
            return {}  # one process sums up and writes
        for name in [each for each in self._derived() if _tasks_of(outcomes, each) != examples.keys()]:
            log(f"{name} is left out: some tasks put their choices into the prompt, where it is not defined")
            outcomes = [outcome for outcome in outcomes if outcome.arm != name]
            write_outcomes(folder / OUTCOMES, outcomes)
        write_atomically(folder / METRICS, json.dumps(summarize(outcomes), indent=1) + "\n")
        seconds = time.monotonic() - started
        log(f"{len(outcomes):,} answers in {duration(seconds)}")
        sizes = message_sizes(lm, context.tasks, by_name, context.split, context.limit, halving)
        return {
            "floors": floors,
            "examples_sha256": dict(context.task_hashes),
            "unstable": unstable,
            "skipped": _skipped(outcomes, self.arms, examples),
            "partners": partners,
            "leaks": [name for name, arm in by_name.items() if arm.leaks],
            "question_aware": [name for name, arm in by_name.items() if arm.wire.question_aware],
            "tokens": sum(outcome.tokens for outcome in outcomes),
            "seconds": round(seconds, 1),
            "sizes": {arm: {task: asdict(size) for task, size in of.items()} for arm, of in sizes.items()},
        }

    def summarise(self, results: Mapping[str, Any]) -> dict[str, Any]:
        return {key: results.get(key, {}) for key in _SUMMARISED}


def _default_dtype() -> str:
    """The dtype in which `LM.load` reads a model when none is named."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def _tasks_of(outcomes: Iterable[Outcome], arm: str) -> set[str]:
    return {outcome.task for outcome in outcomes if outcome.arm == arm}


def _finished(folder: Path, tasks: Collection[str]) -> list[Outcome]:
    """What an earlier attempt finished: outcomes are written task by task, each with all of its arms."""
    path = folder / OUTCOMES
    outcomes = read_outcomes(path) if path.exists() else []
    return [outcome for outcome in outcomes if outcome.task in tasks]


def _skipped(
    outcomes: Sequence[Outcome], arms: Iterable[str], examples: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """By arm and task, how many examples have no outcome, where any has none; an earlier attempt's count too."""
    answered = Counter((outcome.arm, outcome.task) for outcome in outcomes)
    left = {arm: {task: count - answered[arm, task] for task, count in examples.items()} for arm in arms}
    nonzero = {arm: {task: count for task, count in of.items() if count} for arm, of in left.items()}
    return {arm: of for arm, of in nonzero.items() if of}
