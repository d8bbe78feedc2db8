"""Checks the tokens of prompts: BOS, the answer's first token, and whether copies of a tokenizer agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm import chat_template
from latentwire.lm.loading import tokenizer_files
from latentwire.lm.loading.weights import described
from latentwire.lm.model import LM
from latentwire.lm.prompt_settings import departure
from latentwire.lm.prompts import Example
from latentwire.wires import Wire

LONG = 3000
"""Words of the text by which a tokenizer that cuts its texts is found."""
ODD = " Zoë's naïve café: 3.5% of 1,000 — «ok»?\n\n\tA  line."
"""Added to the texts that tokenizers are compared on: accents, digits, blanks and line breaks."""


def bos_problems(lm: LM, examples: Sequence[Example]) -> Iterator[str]:
    """BOS has to begin a prompt once where the tokenizer writes it, and never twice."""
    bos, begins = lm.tokenizer.bos_token_id, chat_template.begins_with_bos(lm)
    if bos is None:
        return
    for example in examples:
        ids = lm.format.tokens(example.context, example.question, lm).ids
        count = next((at for at, token in enumerate(ids) if token != bos), len(ids))
        if count > 1 or (begins and not count):
            found = f"{count} BOS tokens" if count else "no BOS token"
            yield (
                f"prompt: found {found} at the beginning of {example.id}, expected one; the tokenizer and the "
                f"{lm.format.template} template have to agree on who writes it"
            )
            return


def first_token_problems(lm: LM, examples: Sequence[Example], seen: list[tuple[str, str]]) -> Iterator[str]:
    """Prompt and answer tokens together must be the text: none lost between them, none twice.

    Args:
        seen: grows by the first supervised token of every answer, and the answer.
    """
    for example in examples:
        _, answers = lm.format.encode(example, lm)
        for text, ids in zip(example.choices or example.answers[:1], answers, strict=True):
            first = lm.decode(ids[:1])
            seen.append((first, text))
            read = lm.format.tokens(example.context, example.question, lm).ids + ids
            whole = lm.format.whole(example.context, example.question, text, lm)
            if lm.decode(read) != lm.decode(whole):
                yield f"the first supervised token of {example.id} is {first!r}, not the first of {text!r}"


def tokenizer_problems(lm: LM, examples: Sequence[Example], skipped: list[str]) -> Iterator[str]:
    """The tokenizer in memory, a saved copy and the model's files give the same tokens, and all of them.

    Args:
        skipped: grows by what could not be looked at.
    """
    tokenizer = lm.tokenizer
    long = "word " * LONG
    most = len(tokenizer(long, add_special_tokens=False)["input_ids"])
    more = len(tokenizer(long * 2, add_special_tokens=False)["input_ids"])
    if more <= most:
        yield f"tokenizer: cuts texts at {more:,} tokens without a word, expected all tokens of a long prompt"
    texts = [f"{example.context}\n{example.question}{ODD}" for example in examples]
    with TemporaryDirectory() as folder:
        lm.model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        saved = tokenizer_files.read(folder, trust_remote_code=False)
    if difference := _difference(tokenizer, saved, texts):
        yield f"tokenizer: a saved copy {difference}, so that a checkpoint would be read with other tokens"
    if not Path(lm.name).is_dir() and not lm.name.startswith("embedded:"):
        skipped.append(f"the tokenizer's own files, since {lm.name} is no local folder")
        return
    try:
        stored = described(lm.name).tokenizer
    except UserError as error:
        skipped.append(f"the tokenizer's own files ({error})")
        return
    if difference := _difference(tokenizer, stored, texts):
        yield f"tokenizer: the one in {lm.name} {difference}, expected that with which the model reads"


def _difference(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, texts: Sequence[str]
) -> str | None:
    for name in ("bos_token_id", "eos_token_id", "chat_template"):
        if (mine := getattr(ours, name)) != (other := getattr(theirs, name)):
            return f"has another {name} ({_short(other)} for {_short(mine)})"
    for text in texts:
        for special in (True, False):
            mine, other = (list(t(text, add_special_tokens=special)["input_ids"]) for t in (ours, theirs))
            if mine != other:
                at = next((n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), len(mine))
                return f"makes {len(other)} tokens of a text of {len(mine)}, others from token {at} on"
    return None


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."


def format_warnings(lm: LM, wire: Wire) -> Iterator[str]:
    """Sentences on a model or wire that is read with another prompt format than it was trained with."""
    for trained, what in ((lm.saved_format, lm.name), (wire.trained_format(lm), f"the wire {wire.label}")):
        if sentence := departure(lm.format, trained, what):
            yield sentence
