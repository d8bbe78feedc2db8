"""A task: a named, ordered list of examples and the kind of answer they want."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from latentwire.errors import UserError
from latentwire.lm.prompts import Example

if TYPE_CHECKING:
    from latentwire.lm.decoding import DecodingSettings
    from latentwire.lm.prompt_format import PromptFormat

AnswerKind = Literal["span", "solution", "choice"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples by split, and how they are answered.

    Attributes:
        name: unique within an evaluation; a slash makes it a member of a family (`choices/city`).
        answer: picks the metrics: `span` (exact match and F1 of a short answer), `solution` (a worked solution
            ending in `#### N`) or `choice` (log-likelihood over `Example.choices`).
        source: yields the examples of a split in an order that never changes, so that a limit keeps the same ones.
        max_new_tokens: the most tokens of a generated answer.
        stop: strings at which a generated answer ends.
        format: the prompt format of a benchmark that has its own; None for the reader's.
        instruction: the line that says how to answer, in place of the reader's; None keeps that.
        judge: from a generated text and its example to metrics, where the benchmark scores in its own way.
        remark: sentences on what was left out or departs from the benchmark's definition, printed with every
            evaluation.
        apart: whether no example is in two splits; a file's examples are in all of them.
        decoding: changes to how answers are generated, as a study or a command says.

    Example:
        >>> import latentwire as lw
        >>> fact = lw.Example(id="1", group="1", context="Ada is in Rome.", question="Where?", answers=("Rome",))
        >>> lw.task([fact], "towns").answer
        'span'
    """

    name: str
    answer: AnswerKind
    source: Callable[[Split], Iterable[Example]]
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    format: PromptFormat | None = None
    instruction: str | None = None
    judge: Callable[[str, Example], dict[str, float]] | None = None
    remark: str = ""
    apart: bool = False
    decoding: DecodingSettings | None = None

    def asked_in(self, own: PromptFormat) -> PromptFormat:
        """The format in which a reader is asked, whose own format is `own`.

        Raises:
            UserError: there is an instruction for a prompt that is a benchmark's, word for word.
        """
        words = own if self.format is None else own.around(self.format)
        if self.instruction is None:
            return words
        if words.template == "raw":
            if self.instruction:
                raise UserError(
                    f"instruction: found one for {self.name}, which this model is asked word for word; expected "
                    "none, or a model that is asked in chat form."
                )
            return words
        return words.model_copy(update={"instruction": self.instruction})

    def examples(self, split: Split = "test", limit: int | None = None) -> list[Example]:
        """The first `limit` examples of `split` (all of them without a limit)."""
        return list(islice(self.source(split), limit))


def examples_sha256(examples: Iterable[Example]) -> str:
    """SHA-256 of everything that the examples hold, in their order."""
    sha256 = hashlib.sha256()
    for example in examples:
        sha256.update(json.dumps(vars(example), sort_keys=True, ensure_ascii=False).encode())
    return sha256.hexdigest()
