"""Chat templates of tokenizers: turns as text, the one BOS token, and what ends the model's turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.reader import Tokenizes

ANSWER = "Answered."
"""A finished assistant turn, to find out what a template writes around one."""
MARKUP = frozenset("<>{}[]|")
"""Characters of the marks that templates look for in what is said."""
PROBES = ("Zq7 one.", "A zq8 question,\nof two lines: 1 + 1 = 2? No!", "zq9")
"""Plain texts, to find out what a template writes around one."""
THINKING = ("enable_thinking", "thinking")
"""What templates call the switch of a model's thinking, as far as they have one."""


def template_of(lm: Tokenizes) -> str:
    """The tokenizer's chat template, "" where it has none. Of several, the one named `default`."""
    template = getattr(lm.tokenizer, "chat_template", None) or ""
    return str(template.get("default", "")) if isinstance(template, dict) else str(template)


def render(
    turns: Sequence[tuple[str, str]], lm: Tokenizes, *, thinking: bool = False, answering: bool = True
) -> str:
    """The text of (role, text) turns.

    Args:
        thinking: whether the model may think before it answers, where the template knows such a switch.
        answering: whether the text ends where the model's next turn begins.

    Raises:
        UserError: there is no chat template, or it refuses these turns.
    """
    template = template_of(lm)
    if not template:
        raise UserError(
            f"prompts: found template chat for {lm.name}, whose tokenizer has no chat template; expected an "
            "instruct model, or template question."
        )
    switches: dict[str, Any] = {name: thinking for name in THINKING if name in template}
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        text: Any = lm.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answering, **switches
        )
    except Exception as error:  # Jinja raises what the template's author wrote, and errors of its own
        roles = ", ".join(role for role, _ in turns)
        raise UserError(
            f"prompts: the chat template of {lm.name} refuses the turns {roles} ({_first_line(error)}); expected "
            "turns that it knows, such as no system text."
        ) from error
    return str(text)


def is_plain(text: str) -> bool:
    """Whether a text has nothing that a template may look for or strip."""
    return text == text.strip() and text != "" and not MARKUP.intersection(text)


def frame(lm: Tokenizes, *, system: str | None = None, thinking: bool = False) -> tuple[str, str] | None:
    """What the template writes before and after a user's plain text; None if that depends on the text.

    Raises:
        UserError: as `render`.
    """
    return _frame(lm.tokenizer, lm.name, template_of(lm), system, thinking)


def user_turn(text: str, lm: Tokenizes, *, system: str | None = None, thinking: bool = False) -> str:
    """`render` of a user's turn that the model answers, without running the template for plain text.

    A template that writes the same around each of `PROBES` is taken to do so around any plain text. Text with
    markup, which templates look for, or with blanks at its ends, which some strip, is always rendered.

    Raises:
        UserError: as `render`.
    """
    around = frame(lm, system=system, thinking=thinking) if is_plain(text) else None
    if around is not None:
        return around[0] + text + around[1]
    return render([*([] if system is None else [("system", system)]), ("user", text)], lm, thinking=thinking)


def with_one_bos(ids: Sequence[int], lm: Tokenizes, begins: bool) -> tuple[list[int], int]:
    """Token ids of a rendered chat with BOS once, where the tokenizer begins texts with it.

    A template may write BOS itself or leave it to the tokenizer; a model was trained with one.

    Args:
        begins: `begins_with_bos(lm)`.

    Returns:
        The ids, and how many tokens were added at their beginning: 1, 0, or negative for those left out.
    """
    bos, kept = lm.tokenizer.bos_token_id, list(ids)
    if bos is None:
        return kept, 0
    while kept[:2] == [bos, bos]:
        kept = kept[1:]
    if begins and kept[:1] != [bos]:
        kept = [int(bos), *kept]
    return kept, len(kept) - len(ids)


def begins_with_bos(lm: Tokenizes) -> bool:
    """Whether the tokenizer begins every text with BOS by itself."""
    bos = lm.tokenizer.bos_token_id
    return bos is not None and list(lm.tokenizer("a")["input_ids"][:1]) == [bos]


def around_answer(lm: Tokenizes, *, thinking: bool = False) -> tuple[str, str]:
    """What a template writes between the opening of the model's turn and its text, and after that text.

    Both are empty for a template whose finished turn does not begin as the open one does.
    """
    return _around_answer(lm.tokenizer, lm.name, template_of(lm), thinking)


def end_of_turn(lm: Tokenizes) -> frozenset[int]:
    """The special token with which the template ends the model's turn; empty where it writes none."""
    return _end_of_turn(lm.tokenizer, lm.name, template_of(lm))


@dataclass(frozen=True)
class _Named:
    tokenizer: PreTrainedTokenizerBase
    name: str
    eos_ids: frozenset[int] = frozenset()


@lru_cache(maxsize=64)
def _frame(
    tokenizer: PreTrainedTokenizerBase, name: str, template: str, system: str | None, thinking: bool
) -> tuple[str, str] | None:
    """What a template writes before and after a user's plain text; None if that depends on the text."""
    before = [] if system is None else [("system", system)]
    frames = set()
    for probe in PROBES:
        chat = render([*before, ("user", probe)], _Named(tokenizer, name), thinking=thinking)
        if chat.count(probe) != 1:
            return None
        head, _, tail = chat.partition(probe)
        frames.add((head, tail))
    return frames.pop() if len(frames) == 1 else None


@lru_cache(maxsize=16)
def _around_answer(
    tokenizer: PreTrainedTokenizerBase, name: str, template: str, thinking: bool
) -> tuple[str, str]:
    lm, turns = _Named(tokenizer, name), [("user", "?")]
    opened = render(turns, lm, thinking=thinking)
    closed = render([*turns, ("assistant", ANSWER)], lm, thinking=thinking, answering=False)
    if not closed.startswith(opened) or ANSWER not in closed[len(opened) :]:
        return "", ""
    before, _, after = closed[len(opened) :].partition(ANSWER)
    return before, after


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, name: str, template: str) -> frozenset[int]:
    after = _around_answer(tokenizer, name, template, False)[1].lstrip()
    first = tokenizer(after, add_special_tokens=False)["input_ids"][:1] if after else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return frozenset(int(token) for token in first if token in special)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
