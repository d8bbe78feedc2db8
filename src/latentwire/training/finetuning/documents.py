"""Training documents: prompts with the answers to be learned, as tokens, labels and blocks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompts import CAUSAL, Example
from latentwire.lm.scoring.questions import IGNORE
from latentwire.tasks import resolve
from latentwire.tasks.base import Split
from latentwire.training.config import Data, FileData, HubData, WorldData
from latentwire.wires import Wire


@dataclass(frozen=True)
class Document:
    """One prompt with its answer, or one conversation.

    ids, labels, blocks: per token; labels are `IGNORE` but where the model answers.
    """

    ids: list[int]
    labels: list[int]
    blocks: list[int]


Turn = tuple[str, str]
"""Role (`user` or `assistant`) and text."""
Source = Example | list[Turn]
"""What a document is made from."""


def document(source: Source, wire: Wire, lm: LM) -> Document:
    """The document that `wire` makes of an example or of a conversation.

    Raises:
        UserError: the wire delivers something else than tokens, which cannot be packed.
    """
    if isinstance(source, list):
        return _conversation(source, wire, lm)
    prompt, answers = lm.format.encode(source, lm)
    prefix = wire([prompt], lm)
    if prefix.ids is None or prefix.memory is not None:
        raise UserError(f"wire: {wire.label} delivers no plain tokens, so its rows cannot be packed.")
    answer = answers[max(source.gold, 0)] + sorted(lm.eos_ids)[:1]
    ids, blocks = prefix.ids[0].tolist(), prefix.columns.blocks[0].tolist()
    return Document(
        ids=ids + answer,
        labels=[IGNORE] * len(ids) + answer,
        blocks=blocks + [blocks[0] if prefix.leaky else CAUSAL] * len(answer),
    )


def _conversation(turns: Sequence[Turn], wire: Wire, lm: LM) -> Document:
    """Every user turn is a block of its own under `prefix` and `segments`; what the model says is causal."""
    if wire.kind != "text":
        raise UserError(
            f"wire: found {wire.label} for conversations, expected text: no context is delivered there."
        )
    ids: list[int] = []
    labels: list[int] = []
    blocks: list[int] = []
    causal = getattr(wire, "mask", "causal") == "causal"
    for at, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = lm.format.conversation(turns[:at], lm, answering=True)
        after = lm.format.conversation(turns[: at + 1], lm, answering=False)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            raise UserError("data: the chat template rewrites earlier turns, so answers cannot be told apart.")
        blocks += [CAUSAL if causal else at] * (len(before) - len(ids)) + [CAUSAL] * (len(after) - len(before))
        labels += [IGNORE] * (len(before) - len(ids)) + after[len(before) :]
        ids = after
    return Document(ids, labels, blocks)


def sources(data: Data, split: Split, limit: int | None, held_out: int) -> Iterator[Source]:
    """What to train on (`train`) or to evaluate on (`validation`), always in the same order.

    Args:
        limit: at most so many. held_out: how many of a file's lines belong to `validation`.

    Raises:
        UserError: unreadable or empty data, naming file, line and field.
    """
    if isinstance(data, WorldData):
        yield from _world(data, split, limit)
        return
    lines = list(_hub(data) if isinstance(data, HubData) else _file(data))
    name = data.name if isinstance(data, HubData) else str(data.path)
    if len(lines) <= held_out:
        raise UserError(
            f"data: {name} has {len(lines)} examples, expected more than the {held_out} that are held out."
        )
    random.Random("held out").shuffle(lines)
    chosen = lines[-held_out:] if split == "validation" else lines[:-held_out]
    yield from (_source(line, f"{name}/{at}") for at, line in enumerate(chosen[:limit]))


def _world(data: WorldData, split: Split, limit: int | None) -> Iterator[Example]:
    streams = [iter(task.source(split)) for task in resolve(list(data.tasks), None)]
    count = 0
    while streams and count != limit:
        # Tasks take turns, so that any number of examples holds equal parts of each.
        example = next(streams[0], None)
        streams = streams[1:] if example is None else [*streams[1:], streams[0]]
        if example is not None:
            count += 1
            yield example


def _file(data: FileData) -> Iterator[dict[str, Any]]:
    # Not splitlines: a text may hold a line separator of Unicode, which ends no line here.
    for number, line in enumerate(_text(data.path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{data.path}, line {number}: expected JSON, found an error: {error}.") from error
        _check_fields(found, f"{data.path}, line {number}")
        yield found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {path} cannot be read as UTF-8 text: {error}.") from error


def _hub(data: HubData) -> Iterable[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("data: a hub dataset needs the `datasets` package; pip install datasets.") from error
    try:
        found: Iterable[dict[str, Any]] = load_dataset(data.name, split=data.split)
    except Exception as error:  # its errors have no common class, and all of them mean the same here
        raise UserError(
            f"data: {data.name} cannot be loaded from the hub: {str(error).splitlines()[0]}"
        ) from error
    for number, line in enumerate(found):
        _check_fields(line, f"{data.name}, line {number}")
        yield line


def _check_fields(line: Any, where: str) -> None:
    if isinstance(line, dict):
        for names in (("prompt", "response"), ("instruction", "output")):
            if line.keys() >= set(names):
                _check_texts({name: line[name] for name in names}, where)
                return
        if isinstance(line.get("messages"), list) and line["messages"]:
            _check_turns(line["messages"], where)
            return
    found = ", ".join(map(str, line)) if isinstance(line, dict) else type(line).__name__
    raise UserError(f"{where}: found {found}, expected prompt and response, instruction and output, or messages.")


def _check_texts(fields: dict[str, Any], where: str) -> None:
    for name, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}, {name}: found {value!r}, expected a text that is not empty.")


def _check_turns(turns: list[Any], where: str) -> None:
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise UserError(f"{where}, messages: found {str(turn)[:60]}, expected objects with role and content.")
        _check_texts({"role": turn["role"], "content": turn["content"]}, where)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise UserError(f"{where}, messages: found no turn of the assistant, expected one to learn from.")


def _source(line: dict[str, Any], name: str) -> Source:
    if "messages" in line:
        return [(str(turn["role"]), str(turn["content"])) for turn in line["messages"]]
    context, question, answer = (
        ("", line["prompt"], line["response"])
        if "prompt" in line
        else (line.get("input") or "", line["instruction"], line["output"])
    )
    return Example(id=name, group=name, context=context, question=question, answers=(answer,))
