"""Any task of lm-eval by its name: its documents, its prompts, its choices, its filters.

Prompts come from lm-eval's own task object. Where lm-eval is not installed, the official files of a few benchmarks
are worded by `tasks.worded` as lm-eval would. The whole prompt is in `Example.context` and the question is empty:
under `none` a reader gets only the token that begins a text, and its score is that of the choices by themselves.
Where choices are part of the prompt (Winogrande), they are then all the same, and the one that is taken, the first
unless rounding decides otherwise, is a guess.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.lm.prompts import Example
from latentwire.tasks import harness_index, official, worded
from latentwire.tasks.base import Task
from latentwire.tasks.data_files import digest
from latentwire.tasks.worded import FEWSHOT_SEED, MAX_NEW_TOKENS, UNREADABLE, kept, raw_format, zero_shot

INSTALL = "pip install 'latentwire[harness]'"


def names(include_path: Path | None = None) -> list[str] | None:
    """The names of all single tasks, or None where lm-eval is not installed.

    Raises:
        UserError: `include_path` is no folder.
    """
    manager = _manager(include_path)
    return None if manager is None else list(manager.all_subtasks)


def groups(include_path: Path | None = None) -> list[str]:
    """The names that stand for several tasks."""
    manager = _manager(include_path)
    return [] if manager is None else [*manager.all_groups, *manager.all_tags]


def task(kind: str, name: str, data: Path | None = None, include_path: Path | None = None) -> Task:
    """lm-eval's task `kind`, called `name` here.

    Documents are those that lm-eval evaluates: the test split, or the validation split where there is no test
    split. They come from the hub, or from the official files in `data` if `official.RELEASES` knows them. Each is
    preceded by as many worked examples as the definition says, the ones that lm-eval draws; where the official
    files lack the file they are drawn from, there are none, and the task's `remark` says so.

    Args:
        kind: lm-eval's name.
        name: what the task is called here.
        data: the benchmark's official file or folder.
        include_path: a folder with lm-eval YAML files.

    Example:
        >>> task("arc_easy", "arc_easy", Path("ARC-Easy-Test.jsonl")).examples(limit=1)

    Raises:
        UserError: lm-eval is needed and not installed, the documents cannot be loaded or worded, or the task is
            neither multiple choice nor scored by exact match.
    """
    manager = _manager(include_path)
    if manager is None and data is not None and kind in worded.KINDS:
        return worded.KINDS[kind](name, data)
    if manager is None:
        raise UserError(f"task: {kind!r} is a task of lm-eval, which is not installed; {INSTALL}.")
    spec: Any = kind
    worked: list[official.Document] = []
    if data is not None:
        worked = official.training(kind, data)
        # A group of one: there, and only there, lm-eval lets an entry change a definition that it knows by name.
        spec = {"group": "latentwire", "task": [{"task": kind, **_over(official.documents(kind, data), worked)}]}
    try:
        (harness,) = manager.load([spec])["tasks"].values()
        documents = harness.eval_docs
    except Exception as error:  # what datasets, the hub and lm-eval raise has no common class
        where = "be built over its documents" if data is not None else "be loaded with its documents"
        hint = (
            "; its official files can be given as data instead"
            if kind in official.RELEASES and data is None
            else ""
        )
        raise UserError(f"task: {kind!r} of lm-eval cannot {where} ({_first_line(error)}){hint}.") from error
    harness.set_fewshot_seed(FEWSHOT_SEED)
    shots, remark = int(harness.config.num_fewshot or 0), ""
    if shots and data is not None and not worked:
        shots, remark = 0, zero_shot(name, shots, data)
    made = _choice_task if harness.OUTPUT_TYPE == "multiple_choice" else _generation_task
    return replace(made(harness, shots, documents, name), remark=remark)


@cache
def _manager(include_path: Path | None) -> Any:
    """lm-eval's index of tasks; None where it is not installed."""
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"include-path: expected a folder of lm-eval YAML files, found {str(include_path)!r}.")
    try:
        import datasets
        import lm_eval  # noqa: F401
    except ImportError:
        return None
    # Both print their inner workings on the screen.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    return harness_index.manager(include_path)


def _over(documents: list[official.Document], worked: list[official.Document]) -> dict[str, Any]:
    """Changes by which a definition reads `documents` and draws worked examples from `worked`."""
    import datasets

    made = datasets.DatasetDict({"test": datasets.Dataset.from_list(documents)})
    if worked:
        made["train"] = datasets.Dataset.from_list(worked)
    drawn = "train" if worked else None
    splits = {"training_split": drawn, "validation_split": None, "fewshot_split": drawn, "test_split": "test"}
    return {**splits, "custom_dataset": lambda **_: made}


def _choice_task(harness: Any, shots: int, documents: Any, name: str) -> Task:
    examples = (_choice_example(harness, shots, doc, name, at) for at, doc in enumerate(documents))
    return Task(
        name=name, answer="choice", source=kept(examples, name), format=raw_format(harness.config.target_delimiter)
    )


def _choice_example(harness: Any, shots: int, doc: Any, name: str, at: int) -> Example:
    try:
        prefix = harness.doc_to_prefix(doc)
        asked = harness.fewshot_context(doc, num_fewshot=shots, gen_prefix=prefix)
        choices = [str(choice) for choice in harness.doc_to_choice(doc)]
        # Unconditional requests of `acc_mutual_info` come after the choices' own.
        pairs = [request.args for request in harness.construct_requests(doc, asked)][: len(choices)]
        gold = harness.doc_to_text(doc) if harness.multiple_input else harness.doc_to_target(doc)
    except Exception as error:  # a template or function of the task's definition
        raise _unworded(name, at, error) from error
    position = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if not isinstance(position, int) or not 0 <= position < len(choices) or not all(choices):
        raise UserError(f"task: {name}, document {at}: expected one right choice among {choices}, found {gold!r}.")
    context = pairs[0][0]
    answers: tuple[str, ...] = ()
    if harness.multiple_input:
        context = context.removesuffix(choices[0])
        answers = (str(harness.doc_to_target(doc)),)
    example = Example(
        id=f"{digest(context, *answers, *choices)}-{at}",
        # As elsewhere: examples that share a prompt are a group; without a prompt each is its own.
        group=digest(context) if context and not answers else f"{name}-{at}",
        context=context,
        question="",
        answers=answers,
        choices=tuple(choices),
        gold=position,
    )
    delimiter = harness.config.target_delimiter
    ours = [(asked.context, delimiter + choice) for asked in example.requests() for choice in asked.choices]
    if ours != [(str(before), str(after)) for before, after, *_ in pairs]:
        raise UserError(
            f"task: {name}, document {at}: found a request of lm-eval that no prompt here can express."
        )
    return example


def _generation_task(harness: Any, shots: int, documents: Any, name: str) -> Task:
    config, how = harness.config, harness.config.generation_kwargs or {}
    metrics = [metric["metric"] for metric in config.metric_list or []]
    greedy = not how.get("do_sample") and config.repeats == 1
    if harness.OUTPUT_TYPE != "generate_until" or "exact_match" not in metrics or not greedy:
        found = ", ".join([harness.OUTPUT_TYPE, *map(str, metrics)])
        raise UserError(f"task: expected multiple choice or greedy text scored by exact_match, {name} is {found}.")
    asked: dict[str, Any] = {}

    def example(at: int, doc: Any) -> Example:
        try:
            context = harness.fewshot_context(doc, num_fewshot=shots, gen_prefix=harness.doc_to_prefix(doc))
            target = harness.doc_to_target(doc)
        except Exception as error:
            raise _unworded(name, at, error) from error
        answers = tuple(map(str, target)) if isinstance(target, list) else (str(target),)
        made = Example(
            id=f"{digest(context, *answers)}-{at}",
            # The question by itself: worked examples are drawn anew for each.
            group=digest(str(harness.doc_to_text(doc))),
            context=context,
            question="",
            answers=answers,
        )
        asked[made.id] = doc
        return made

    stop = how.get("until") or []
    return Task(
        name=name,
        answer="solution",
        source=kept((example(at, doc) for at, doc in enumerate(documents)), name),
        max_new_tokens=int(how.get("max_gen_toks", MAX_NEW_TOKENS)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        format=raw_format(harness.config.target_delimiter),
        judge=lambda text, example: _judged(harness, text, asked[example.id]),
    )


def _judged(harness: Any, text: str, doc: Any) -> dict[str, float]:
    """lm-eval's score of an answer by the task's first filter, and whether that filter finds no answer in it."""
    from lm_eval.api.instance import Instance

    request = Instance(request_type="generate_until", doc=doc, arguments=("", {}), idx=0, resps=[text])
    harness._filters[0].apply([request])
    (read,) = request.filtered_resps.values()
    found = harness.process_results(doc, [read])
    return {"exact_match": float(found["exact_match"]), "unreadable": float(read == UNREADABLE)}


def _unworded(name: str, at: int, error: Exception) -> UserError:
    return UserError(f"task: lm-eval's definition of {name} fails on document {at} ({_first_line(error)}).")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
