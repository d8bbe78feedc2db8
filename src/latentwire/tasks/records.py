"""What a row holds, whatever its columns are called: a question, an instruction, a conversation or plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from latentwire.errors import UserError, one_of
from latentwire.lm.prompts import Example
from latentwire.tasks.data_files import digest
from latentwire.tasks.rows import Row

Turn = tuple[str, str]
"""Role (`user`, `assistant` or `system`) and text."""
Record = Example | list[Turn] | str
"""A question or instruction with its answer, a conversation, or plain text."""

FIELDS = (
    "context",
    "question",
    "answers",
    "choices",
    "gold",
    "id",
    "group",
    "messages",
    "text",
)
"""What a mapping of fields can name."""

QUESTIONS = {
    "question": ("answers", "answer"),
    "instruction": ("output", "response"),
    "prompt": ("response", "completion"),
}
"""Columns that ask, and those that may answer them."""
CONTEXTS = ("context", "input")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""ShareGPT's names of the roles."""
SHAPES = (
    "question and answers, question, choices and gold, instruction and output or response, prompt and response or "
    "completion, messages, conversations, or text"
)


class Unusable(Exception):
    """A row that cannot be used, and why; the message begins with the reason, which equal reasons share."""


@dataclass(frozen=True)
class Records:
    """What the rows of a source hold, in their order.

    Attributes:
        items: the usable rows.
        total: how many rows there are.
        unusable: where each unusable row stands, and why it is.
    """

    items: list[Record]
    total: int
    unusable: list[tuple[str, str]]

    @property
    def remark(self) -> str | None:
        """One sentence on what was skipped; None if nothing was."""
        if not self.unusable:
            return None
        reasons = Counter(reason for _, reason in self.unusable)
        counted = ", ".join(f"{count} with {reason}" for reason, count in reasons.most_common(4))
        first = self.unusable[0][0]
        return f"{len(self.unusable):,} of {self.total:,} rows are skipped: {counted}; the first is {first}"


def read_records(
    rows: Iterable[Row], place: str, fields: Mapping[str, str] | None = None, max_unusable: float = 0.05
) -> Records:
    """What rows hold; unusable rows are skipped and counted.

    Args:
        place: what messages call the source.
        fields: for what is called otherwise than expected, the column that holds it; dots lead into objects.
        max_unusable: the share of rows up to which unusable ones are skipped.

    Example:
        >>> read_records(read_rows(path), str(path), {"answers": "reply.text"})

    Raises:
        UserError: there is no row, a mapped column does not exist, or too many rows are unusable.
    """
    items: list[Record] = []
    unusable: list[tuple[str, str]] = []
    total = 0
    for row in rows:
        if not total:
            _check_mapping(fields or {}, row)
        total += 1
        try:
            items.append(record(row, fields or {}))
        except Unusable as error:
            unusable.append((row.where, str(error)))
    if not total:
        raise UserError(f"{place}: found no row, expected at least one.")
    records = Records(items, total, unusable)
    if len(unusable) > max_unusable * total:
        where, reason = unusable[0]
        raise UserError(
            f"{where}: found {reason}; {len(unusable):,} of {total:,} rows cannot be used, expected at most "
            f"{max_unusable:.0%} (max_unusable)."
        )
    return records


def record(row: Row, fields: Mapping[str, str]) -> Record:
    """What one row holds.

    Raises:
        Unusable: it holds none of the known shapes, or an empty text where one is needed.
    """
    values = {key: value for key, value in row.fields.items() if value is not None}
    values |= {name: value for name, path in fields.items() if (value := _at(row.fields, path)) is not None}
    for name in ("messages", "conversations"):
        if name in values:
            return _conversation(values[name], name)
    for asks, answers in QUESTIONS.items():
        if "choices" in values and asks == "question" in values:
            return _choice(values, row)
        for answer in ("answers", *answers):
            if asks in values and answer in values:
                return _example(values, asks, answer, row)
        if asks in values:
            raise Unusable(f"{asks} without {' or '.join(answers)}")
    if "text" in values:
        return _text(values["text"], "text")
    raise Unusable(f"the fields {', '.join(row.fields) or 'none'}, expected {SHAPES}")


def _example(values: Mapping[str, Any], asks: str, answer: str, row: Row) -> Example:
    context = next((_joined(values[name], name) for name in CONTEXTS if name in values), "")
    question = _text(values[asks], asks)
    answers = _answers(values[answer], answer)
    id_ = str(values.get("id") or values.get("_id") or f"{digest(context, question, *answers)}-{row.number}")
    # An instruction's input may be a single word; only questions are asked about a passage.
    shared = digest(context) if asks == "question" and context.strip() else id_
    return Example(
        id=id_, group=str(values.get("group") or shared), context=context, question=question, answers=answers
    )


def _choice(values: Mapping[str, Any], row: Row) -> Example:
    choices, gold = values["choices"], values.get("gold", values.get("answer"))
    labels: list[Any] | None = None
    if isinstance(choices, dict):  # as ARC and OpenBookQA have them
        labels = choices.get("label")
        choices = choices.get("text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise Unusable("fewer than two choices")
    labels = labels or list(range(len(choices)))
    if gold not in labels:
        raise Unusable("a gold answer that is none of the choices")
    context = _joined(values["context"], "context") if "context" in values else ""
    question = _text(values["question"], "question")
    id_ = str(values.get("id") or f"{digest(context, question, *map(str, choices))}-{row.number}")
    return Example(
        id=id_,
        group=str(values.get("group") or (digest(context) if context.strip() else id_)),
        context=context,
        question=question,
        choices=tuple(_text(choice, "choices") for choice in choices),
        gold=labels.index(gold),
    )


def _conversation(turns: Any, name: str) -> list[Turn]:
    if not isinstance(turns, list) or not turns:
        raise Unusable(f"{name} that are no list of turns")
    made = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or text is None:
            raise Unusable(f"a turn in {name} without role and content (or from and value)")
        if isinstance(text, list):  # parts, as chat APIs have them
            text = "".join(part.get("text") or "" for part in text if isinstance(part, dict))
        made.append((ROLES.get(role, role), _text(text, f"{name}: {role}")))
    roles = [role for role, _ in made]
    if "user" not in roles:
        raise Unusable("no turn of the user")
    if "assistant" not in roles:
        raise Unusable("no turn of the assistant")
    return made


def _answers(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # as SQuAD has them
        value = value["text"]
    given = value if isinstance(value, list) else [value]
    texts: list[Any] = [answer.get("text") if isinstance(answer, dict) else answer for answer in given]
    if not texts:
        raise Unusable(f"no answer in {name}")
    return tuple(dict.fromkeys(_text(text, name) for text in texts))


def _joined(value: Any, name: str) -> str:
    """A context; paragraphs with titles, as HotpotQA has them, are a line each."""
    if isinstance(value, dict) and {"title", "sentences"} <= value.keys():
        value = list(zip(value["title"], value["sentences"], strict=False))
    if isinstance(value, list):
        return "\n".join(part if isinstance(part, str) else _paragraph(part, name) for part in value)
    if not isinstance(value, str):
        raise Unusable(f"a {name} that is no text")
    return value


def _paragraph(part: Any, name: str) -> str:
    try:
        title, sentences = part
        return f"{title}: {''.join(sentences).strip()}"
    except (TypeError, ValueError) as error:
        raise Unusable(f"a {name} that is neither a text nor paragraphs with titles") from error


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f"{name} that is no text ({type(value).__name__})")
    if not value.strip():
        raise Unusable(f"an empty {name}")
    return value


def _at(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    value: Any = fields
    for part in [path] if path in fields else path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _check_mapping(fields: Mapping[str, str], row: Row) -> None:
    for name, path in fields.items():
        if name not in FIELDS:
            raise UserError(f"fields: found {name!r}, expected {one_of(name, FIELDS)}.")
        if path not in row.fields and path.split(".")[0] not in row.fields:
            raise UserError(
                f"fields.{name}: found {path!r}, expected {one_of(path, row.fields)}, as in {row.where}."
            )
