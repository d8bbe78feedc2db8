"""lm-eval's requests in batches: prompts to continue, and rows to score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_eval.models.utils import normalize_gen_kwargs

from latentwire.errors import UserError
from latentwire.harness.truncation import fitting
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Prompt
from latentwire.lm.scoring.continuations import Score, score_whole
from latentwire.lm.scoring.prefix_tree import Request
from latentwire.lm.scoring.shared_scorer import SharedScorer

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
class AskedRequest:
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


def alike(asked: Sequence[AskedRequest], batch_tokens: int) -> Iterator[list[AskedRequest]]:
    """Batches of prompts with the same settings, longest first, within `batch_tokens` with their continuations."""
    batch: list[AskedRequest] = []
    for request in sorted(asked, key=lambda request: (repr(request.how), -request.length)):
        width = batch[0].length + request.how.max_new_tokens if batch else 0
        if batch and (request.how != batch[0].how or width * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def scores(
    lm: LM,
    scorer: SharedScorer,
    delivered: Iterator[Delivered],
    continuations: Sequence[Sequence[list[int]]],
    on_cut: Callable[[], None],
) -> Iterator[tuple[int, list[Score]]]:
    """Pairs of a prompt's index and the scores of its continuations, in the order in which they are done.

    Plain tokens are scored together and latents batch by batch; a row that leaks takes a pass of its own.

    Args:
        continuations: of every prompt.
        on_cut: called for each prompt and continuation that lose their beginning; see `truncation.fitting`.
    """
    requests, owners = list[Request](), list[tuple[int, list[int]]]()
    done: dict[int, dict[int, Score]] = {}

    def complete(row: int, which: Sequence[int], values: Sequence[Score]) -> list[tuple[int, list[Score]]]:
        """A prompt's index with its scores, once all of them are there."""
        of_row = done.setdefault(row, {})
        of_row |= dict(zip(which, values, strict=True))
        return [(row, [of_row[k] for k in sorted(of_row)])] if len(of_row) == len(continuations[row]) else []

    for prefix, every in delivered:
        for piece, at, which in fitting(prefix, [continuations[row] for row in every], lm.max_positions, on_cut):
            rows = [every[n] for n in at]
            own = [[continuations[row][k] for k in ks] for row, ks in zip(rows, which, strict=True)]
            plain = Request.of(piece, own)
            if plain is not None:
                requests += plain
                owners += zip(rows, which, strict=True)
                continue
            if piece.leaky:
                lines = (piece.select(piece.columns.positions.new_tensor([n])) for n in range(len(rows)))
                scored = [score_whole(lm, line, [mine])[0] for line, mine in zip(lines, own, strict=True)]
            else:
                scored = lm.score(lm.prefill(piece), own)
            for row, ks, values in zip(rows, which, scored, strict=True):
                yield from complete(row, ks, values)
    for request, values in scorer.score(requests):
        yield from complete(*owners[request], values)


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
