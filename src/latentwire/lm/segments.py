"""Token ids of many texts at once; what stands between special tokens is tokenized once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

FEWEST = 64
"""Fewer texts are tokenized whole, without looking for what they share."""
PROBES = 4
"""Texts at either end of a batch that are tokenized both ways; one difference, and all are tokenized whole."""
SPLITS = "Was it Ada? Answer: 12 apples"
"""A text that a tokenizer which splits at blanks takes in pieces."""


def token_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool, shared: str = ""
) -> list[list[int]]:
    """The token ids of texts, as one call of the tokenizer gives them.

    Prompts of a chat repeat what its template writes; a tokenizer cuts texts at special tokens before anything
    else, so that the parts between them can be tokenized apart.

    Args:
        special: whether the tokenizer adds its own special tokens to every text.
        shared: how many of the texts begin, such as with an instruction. It is tokenized once where the tokenizer
            cuts words apart behind it.
    """
    if not texts:
        return []
    core = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    # Without masks, offsets and type ids, which take longer to make than the tokens.
    if core is None or core.padding is not None or core.truncation is not None:
        return list(tokenizer(list(texts), add_special_tokens=special)["input_ids"])

    def whole(some: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in core.encode_batch_fast(list(some), add_special_tokens=special)]

    if special or len(texts) < FEWEST:
        return whole(texts)
    marks = _marks(tokenizer, len(tokenizer))
    if not marks and not shared:
        return whole(texts)
    if not marks:
        known = _known(list(dict.fromkeys(texts)), shared, whole, core)
        return [known[text] for text in texts]
    pattern = re.compile("(" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")")
    cut = [pattern.split(text) for text in texts]
    different = list(dict.fromkeys(part for parts in cut for part in parts[::2] if part))
    known = _known(different, shared, whole, core) | {mark: [id_] for mark, id_ in marks.items()}
    known[""] = []
    rows = [[id_ for part in parts for id_ in known[part]] for parts in cut]
    probes = sorted({*range(PROBES), *range(len(texts) - PROBES, len(texts))})
    same = whole([texts[at] for at in probes]) == [rows[at] for at in probes]
    return rows if same else whole(texts)


def _known(
    texts: Sequence[str], shared: str, whole: Callable[[Sequence[str]], list[list[int]]], core: Any
) -> dict[str, list[int]]:
    """The token ids of different texts; what many of them begin with is tokenized once."""
    rests = {text: text[len(shared) :] for text in texts if shared and text.startswith(shared)}
    rests = {text: rest for text, rest in rests.items() if rest[:1].isalnum()}
    first = {rest[0]: rest for rest in rests.values()}
    apart = {char for char, rest in first.items() if _ends_a_word(shared, rest, whole, core)}
    rests = {text: rest for text, rest in rests.items() if rest[0] in apart}
    others = [text for text in texts if text not in rests]
    known = dict(zip(others, whole(others), strict=True))
    if rests:
        begun = whole([shared])[0]
        known |= {text: begun + ids for text, ids in zip(rests, whole(list(rests.values())), strict=True)}
    return known


def _ends_a_word(text: str, rest: str, whole: Callable[[Sequence[str]], list[list[int]]], core: Any) -> bool:
    """Whether the tokenizer cuts `text + rest` between the two, and gives each the tokens that it has alone."""
    if core.pre_tokenizer is None:
        return False
    starts = [span[0] for _, span in core.pre_tokenizer.pre_tokenize_str(text + rest)]
    both, first, second = whole([text + rest, text, rest])
    return len(text) in starts and both == first + second


def cut_apart(between: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a special token in a text cuts what follows from what stands before it."""
    return any(mark in between for mark in _marks(tokenizer, len(tokenizer)))


def splits_at_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer cuts texts into words first, so that no token depends on distant text."""
    core = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
    if core is None or core.pre_tokenizer is None:
        return False
    return len(core.pre_tokenizer.pre_tokenize_str(SPLITS)) >= len(SPLITS.split())


@lru_cache(maxsize=16)
def _marks(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, int]:
    """The special tokens that are cut out of any text exactly as they are written, with their ids."""
    return {
        token.content: int(id_)
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
