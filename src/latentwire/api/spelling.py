"""Models, wires, arms and tasks from their command-line spelling, or as the objects they already are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from latentwire import tasks as task_names
from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.arms import Arm, parse_all
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Task
from latentwire.wires.wire import Wire

ModelLike = LM | str | PathLike[str]
"""A loaded model, or what `LM.load` takes: `embedded:NAME`, a folder, a `.gguf` file or a hub id."""
WireLike = str | Wire
"""A wire, or its spelling: `text`, `text,mask=prefix`, `nth,ratio=4`, `embedded:heron-4x`, a folder."""
TaskLike = str | Task
"""A task, or its name: `one_hop`, `squad` (with `data`), a task of lm-eval."""


def load(model: str | PathLike[str], **options: Any) -> LM:
    """Load a decoder model with its tokenizer.

    Args:
        model: `embedded:heron`, `embedded:wren`, a local folder, a `.gguf` file or a hub id.
        options: those of `LM.load`: `dtype`, `device`, `adapter`, `bits` and so on.

    Returns:
        The model, ready to be read over any wire.

    Raises:
        UserError: the model cannot be found or cannot be read right.

    Example:
        >>> import latentwire as lw
        >>> lw.load("embedded:heron").name
        'embedded:heron'
    """
    return LM.load(model, **options)


def wire(spec: WireLike) -> Wire:
    """A wire from its command-line spelling; a wire is returned as it is.

    Args:
        spec: `KIND[,OPTION=VALUE]...[:CONTROL]`, a trained wire's folder, or `embedded:NAME`.

    Returns:
        The wire, not yet bound to a reader: `evaluate`, `compress` and `audit` do that.

    Raises:
        UserError: no such wire or option; the nearest valid one is named.

    Example:
        >>> import latentwire as lw
        >>> lw.wire("text,mask=prefix").mask
        'prefix'
    """
    return spec if isinstance(spec, Wire) else wires.parse(spec)


def task(
    examples: Iterable[Example], name: str = "examples", *, max_new_tokens: int = 16, stop: Sequence[str] = ("\n",)
) -> Task:
    """A task made of your own examples.

    Examples with `choices` are scored by log-likelihood, others by exact match and F1 of a generated answer.

    Args:
        examples: all with `choices`, or all with `answers` in words.
        name: how tables name the task.
        max_new_tokens: how many tokens a generated answer has at most.
        stop: strings at which a generated answer ends.

    Returns:
        A task whose every split is these examples.

    Raises:
        UserError: no example, one without answers, an id that occurs twice, or choices in some examples only.

    Example:
        >>> import latentwire as lw
        >>> fact = lw.Example(
        ...     id="1", group="1", context="Ada lives in Rome.", question="Where?", answers=("Rome",)
        ... )
        >>> len(lw.task([fact]).examples())
        1
    """
    rows = tuple(examples)
    if not rows:
        raise UserError("examples: found none, expected at least one.")
    ids = [row.id for row in rows]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise UserError(f"examples: found the id {twice!r} more than once, expected a different id for each.")
    if bare := next((row.id for row in rows if not row.answers and not row.choices), None):
        raise UserError(f"examples: {bare!r} has neither answers nor choices, expected one of them.")
    chosen = [bool(row.choices) for row in rows]
    if any(chosen) != all(chosen):
        raise UserError("examples: found choices in some examples only, expected them in all or in none.")
    return Task(
        name=name,
        answer="choice" if all(chosen) else "span",
        source=lambda split: rows,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop),
    )


def as_model(model: ModelLike) -> LM:
    """The model itself, loaded where only its name is given."""
    return model if isinstance(model, LM) else LM.load(model)


def as_arms(specs: WireLike | Arm | Sequence[WireLike | Arm], model: str, *, controls: bool = False) -> list[Arm]:
    """Arms from one spelling or object or several; see `evaluation.arms.parse_all`."""
    several = [specs] if isinstance(specs, str | Wire | Arm) else list(specs)
    if not several:
        raise UserError("wires: found none, expected at least one, such as 'text'.")
    return parse_all(several, model, controls=controls)


def as_tasks(specs: TaskLike | Sequence[TaskLike], data: Path | None, include_path: Path | None) -> list[Task]:
    """Tasks from one name or object or several, each once and in order; see `tasks.resolve`."""
    several = [specs] if isinstance(specs, str | Task) else list(specs)
    names = [spec for spec in several if isinstance(spec, str)]
    named = {each.name: each for each in task_names.resolve(names, data, include_path)} if names else {}
    own = {spec.name: spec for spec in several if isinstance(spec, Task)}
    if both := next((name for name in own if name in named), None):
        raise UserError(f"tasks: found two tasks named {both!r}, expected a different name for each.")
    found = {**named, **own}
    if not found:
        raise UserError("tasks: found none, expected at least one, such as 'one_hop'.")
    return list(found.values())
