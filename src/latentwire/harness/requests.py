"""lm-eval's requests in batches: prompts to be continued, and rows to be scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_eval.models.utils import normalize_gen_kwargs

from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Prompt
from latentwire.lm.scoring.continuations import Score, score_whole
from latentwire.lm.scoring.prefix_tree import Request
from latentwire.lm.scoring.together import Together

T = TypeVar("T")
PROMPTS = 256
"""Prompts that a wire delivers at once, before any is read."""
MAX_NEW_TOKENS = 256  # lm-eval's default
KNOWN = (
    "until",
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "do_sample",
    "temperature",
    "top_p",
)
"""Arguments of a generation that are carried out."""
NO_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "top_k": 0, "use_cache": True}
"""Values of others that tasks write out though they change nothing; None never does."""
SAMPLING_ONLY = ("top_k", "min_p", "typical_p")
"""What greedy decoding does not look at."""


class Verbatim(PromptFormat):
    """A prompt to be continued is read to its last blank, as lm-eval's `hf` model reads it."""

    def _kept(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Asked:
    """The request at place `at`: a prompt of `length` tokens to be continued."""

    at: int
    prompt: Prompt
    length: int
    how: Decoding


def parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Rows in their order, `PROMPTS` at a time."""
    for start in range(0, len(rows), PROMPTS):
        yield rows[start : start + PROMPTS]


def alike(asked: Sequence[Asked], batch_tokens: int) -> Iterator[list[Asked]]:
    """Prompts continued in the same way, longest first, as many as fit with what each may grow by."""
    batch: list[Asked] = []
    for each in sorted(asked, key=lambda each: (repr(each.how), -each.length)):
        width = batch[0].length + each.how.max_new_tokens if batch else 0
        if batch and (each.how != batch[0].how or width * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def scores(
    together: Together, prefixes: Iterator[Prefix], behind: Sequence[Sequence[list[int]]]
) -> Iterator[tuple[int, list[Score]]]:
    """Pairs of a row's index and the scores of its continuations; rows that leak take a whole pass each."""
    requests: list[Request] = []
    at = 0
    for prefix in prefixes:
        rows = len(prefix.columns.valid)
        mine = behind[at : at + rows]
        made = Request.of(prefix, mine)
        if made is None:
            for n in range(rows):
                row = prefix.select(prefix.columns.positions.new_tensor([n]))
                yield at + n, score_whole(together.lm, row, [mine[n]])[0]
        else:
            requests += made
        at += rows
    yield from together.score(requests)


def decoding(how: dict[str, Any]) -> Decoding:
    """lm-eval's settings as ours.

    Raises:
        UserError: an argument that is not known here and would change what is generated.
    """
    settings = dict(normalize_gen_kwargs(how, MAX_NEW_TOKENS))
    stop = tuple(each for each in settings.pop("until", None) or () if each)
    tokens, sample = int(settings.pop("max_gen_toks")), settings.pop("do_sample", False)
    temperature, top_p = float(settings.pop("temperature", 0) or 0), float(settings.pop("top_p", 1) or 1)
    heat = temperature if sample else 0.0
    for name, value in settings.items():
        if value is not None and value != NO_EFFECT.get(name) and not (heat == 0 and name in SAMPLING_ONLY):
            raise UserError(f"gen_kwargs: found {name}={value}, expected one of {', '.join(KNOWN)}.")
    return Decoding(max_new_tokens=tokens, stop=stop, temperature=heat, top_p=top_p)
