"""The workload of every stage of a study."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from itertools import islice
from statistics import mean

import torch

from latentwire.errors import UserError, one_of
from latentwire.estimates import other_workloads, wire_workload
from latentwire.estimates.model_shapes import ModelShape, shape
from latentwire.estimates.workload import Workload
from latentwire.studies.plan import read_tasks
from latentwire.studies.spec import Study
from latentwire.studies.stages import Stage
from latentwire.studies.stages.evaluate import Evaluate
from latentwire.studies.stages.finetune import Finetune
from latentwire.studies.stages.wire import TrainWire

SAMPLE = 128
"""Documents of a finetuning whose tokens are counted."""


def count(study: Study, names: Sequence[str] = ()) -> dict[str, Workload]:
    """By stage, what it needs; of the stages named, or of all.

    Raises:
        UserError: a stage, a model, a task or a file is missing.
    """
    for name in names:
        if name not in study.stages:
            raise UserError(f"--stage: found {name!r}, expected {one_of(name, study.stages)}.")
    return {name: _of(stage, study) for name, stage in study.stages.items() if name in names or not names}


@singledispatch
def _of(stage: Stage, study: Study) -> Workload:
    """The workload of a stage; a kind of stage registers its own below."""
    raise UserError(f"estimate: found a stage of kind {stage.kind!r}, for which nothing is counted yet.")


@_of.register
def _(stage: TrainWire, study: Study) -> Workload:
    return wire_workload.count(stage.settings(), {name: _shape(study, name) for name in stage.loads()})


@_of.register
def _(stage: Finetune, study: Study) -> Workload:
    model, settings = _shape(study, study.model), stage.settings()
    return other_workloads.finetuning(settings, model, _document(settings.data, settings.row_tokens, model))


@_of.register
def _(stage: Evaluate, study: Study) -> Workload:
    size = 2 if (study.dtype or "bfloat16") == "bfloat16" else 4
    readers = {name: _shape(study, name) for name in stage.loads()}
    own = _shape(study, stage.model_of(study.model))
    tasks = read_tasks(study)
    return other_workloads.evaluation(
        list(stage.arms.values()), readers, own, tasks, study.split, study.limit, size
    )


def _shape(study: Study, name: str) -> ModelShape:
    return shape(name, study.prompts)


def _document(data: object, longest: int, model: ModelShape) -> float:
    """Tokens of a training document, the mean of a sample."""
    sources = list(islice(data.sources("train", SAMPLE, 1), SAMPLE))  # type: ignore[attr-defined]
    texts = [
        " ".join(text for _, text in source)
        if isinstance(source, list)
        else f"{source.context} {source.question} {(source.answers or source.choices or ('',))[0]}"
        for source in sources
    ]
    rows = model.words.tokenizer(texts, add_special_tokens=True)["input_ids"]
    return mean(min(longest, len(row)) for row in rows)


def this_machine() -> str | None:
    """The accelerator here, as `run.json` names it; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
