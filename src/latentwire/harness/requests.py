"""lm-eval's requests in batches: prompts to continue, and rows to score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_eval.models.utils import normalize_gen_kwargs

from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Prompt
from latentwire.lm.scoring.continuations import Score, score_whole
from latentwire.lm.scoring.prefix_tree import Request
from latentwire.lm.scoring.together import Together

T = TypeVar("T")
Delivered = tuple[Prefix, Sequence[int]]
"""What a wire delivers for some prompts, and which prompts those are."""
PROMPTS = 256
"""How many prompts a wire delivers at once."""
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
"""Arguments of a generation that have an effect here."""
NO_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "top_k": 0, "use_cache": True}
"""Values of other arguments that change nothing, as some tasks write them; None never changes anything."""
SAMPLING_ONLY = ("top_k", "min_p", "typical_p")
"""Arguments that greedy decoding ignores."""


class Verbatim(PromptFormat):
    """The raw format with trailing blanks kept: prompts to continue, as lm-eval's `hf` model reads them."""

    def _kept(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Asked:
    """A prompt to continue.

    Attributes:
        at: the index of its request.
        prompt: what is continued.
        length: of the prompt, in tokens.
        how: how its tokens are chosen.
    """

    at: int
    prompt: Prompt
    length: int
    how: Decoding


def parts(rows: Sequence[T], size: int = PROMPTS) -> Iterator[Sequence[T]]:
    """Rows in order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def alike(asked: Sequence[Asked], batch_tokens: int) -> Iterator[list[Asked]]:
    """Batches of prompts with the same settings, longest first, within `batch_tokens` with their continuations."""
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
    lm: LM, together: Together, delivered: Iterator[Delivered], continuations: Sequence[Sequence[list[int]]]
) -> Iterator[tuple[int, list[Score]]]:
    """Pairs of a prompt's index and the scores of its continuations, in the order in which they are done.

    Plain tokens are scored together and latents batch by batch; a row that leaks takes a pass of its own.

    Args:
        continuations: of every prompt.
    """
    requests, owners = list[Request](), list[int]()
    for prefix, rows in delivered:
        own = [continuations[row] for row in rows]
        plain = Request.of(prefix, own)
        if plain is not None:
            requests += plain
            owners += rows
        elif prefix.leaky:
            for n, row in enumerate(rows):
                alone = prefix.select(prefix.columns.positions.new_tensor([n]))
                yield row, score_whole(lm, alone, [own[n]])[0]
        else:
            yield from zip(rows, lm.score(lm.prefill(prefix), own), strict=True)
    for at, scored in together.score(requests):
        yield owners[at], scored


def decoding(how: dict[str, Any]) -> Decoding:
    """lm-eval's generation settings as a `Decoding`.

    Raises:
        UserError: an argument that has no effect here would change what is generated.
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
