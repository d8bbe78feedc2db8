"""What a wire is trained on: contexts, each with several questions, as the tokens of every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice

from latentwire.errors import UserError
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.tasks.data_files import digest
from latentwire.training.data import ContextExamples, PassageData
from latentwire.training.jobs import spread
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.reader_text import asking

PER_JOB = 500
"""Passages that one process makes at a time; fewer are made here."""

Pair = tuple[list[int], list[int]]
"""Token ids of what stands behind a context, and of the answer with its end-of-sequence token."""


@dataclass(frozen=True)
class Asking(Tokenizing):
    """A reader's tokens of what is asked. wire: what is trained; it says what is encoded and what else is seen."""

    wire: LatentConfig = field(default_factory=LatentConfig)

    @property
    def words(self) -> str:
        """Tells it from all that give other tokens for the same examples."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else repr(self.tokenizer)
        known = [self.name, self.format.model_dump(), sorted(self.eos_ids), self.wire.carry, self.wire.shown]
        return digest(json.dumps([tokenizer, *known]))

    @classmethod
    def of(cls, lm: LM, wire: LatentConfig | None = None) -> Asking:
        return cls(lm.tokenizer, lm.format, lm.name, lm.eos_ids, wire or LatentConfig())

    def told(self, examples: Sequence[Example]) -> tuple[list[int], list[Pair], list[list[int]] | None]:
        """Of examples that share a context: a text, pairs behind it, and what is asked behind latents, if other.

        The text is what latents are made of: of a whole prompt there is one example. There, and where text stands
        beside latents, text and question are the prompt's own tokens.

        Raises:
            UserError: as `asking` and `answers`, or nothing stands behind latents that an answer could be learned
                from.
        """
        prompts = [(each.context, each.question) for each in examples]
        texts, behind = asking(self.wire, prompts, self)
        if not all(behind):
            raise UserError(
                f"data: found nothing behind the latents of {examples[0].id}, whose task words prompts as context "
                "alone, expected a question, or layout: text, where the prompt's last token stands there."
            )
        answers = self.answers(examples)
        if self.wire.carry == "prompt":
            text, rest = self.format.split(*prompts[0], self, whole=True)
            return text, [(rest, answer) for answer in answers], behind
        if texts is None:
            return self.format.before(examples[0].context, self), list(zip(behind, answers, strict=True)), None
        # What runs across the boundary may do so for some questions only.
        shared = min(map(len, texts))
        asked = [[*text[shared:], *ids] for text, ids in zip(texts, behind, strict=True)]
        return texts[0][:shared], list(zip(asked, answers, strict=True)), None

    def answers(self, examples: Sequence[Example]) -> list[list[int]]:
        """Of examples that share a context, as the tokens that they are scored by in an evaluation, and their end.

        Raises:
            UserError: the context changes the tokens of the first answer; all are taken behind the question alone,
                which costs a third of reading the context again for each.
        """
        # Without a question the context is the whole prompt.
        bare = [replace(each, context="") if each.question else each for each in examples]
        behind_context, *answers = self._answers([examples[0], *bare])
        if behind_context != answers[0]:
            raise UserError(
                f"data: the tokenizer of {self.name} cuts the answer to {examples[0].id} in another way behind "
                "its context than behind the question alone, expected the same tokens."
            )
        ends = self.format.answer_end(self)
        return [[*answer, *ends] for answer in answers]

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        encoded = self.format.encode_all([replace(each, choices=()) for each in examples], self)
        return [answers[0] for _, answers in encoded]


@dataclass(frozen=True)
class Passage:
    """One context. group: what it shares with others. text: by reader, the ids of it and of what stands before.
    pairs: by reader, its questions; the same questions in the same order for all readers.

    behind: by reader, what is asked after latents, where that is something else. Where whole prompts are carried,
    `context` and `text` are the prompt.
    """

    group: str
    context: str
    text: dict[str, list[int]]
    pairs: dict[str, list[Pair]]
    behind: dict[str, list[list[int]]] = field(default_factory=dict)

    def asks(self, reader: str, number: int) -> list[int]:
        """Token ids of what a reader is asked behind latents."""
        behind = self.behind.get(reader)
        return self.pairs[reader][number][0] if behind is None else behind[number]

    @property
    def asked(self) -> int:
        """How many questions there are."""
        return len(next(iter(self.pairs.values())))


def passages(
    data: PassageData, readers: Mapping[str, LM], split: Split, count: int, wire: LatentConfig | None = None
) -> list[Passage]:
    """The first `count` passages, always the same ones.

    Args:
        wire: what is trained on them. One that carries whole prompts gets a passage for each question.

    Raises:
        UserError: data that cannot be read, or without contexts and answers in words; readers that word a prompt
            differently, where prompts are carried.
    """
    tokenizing = {name: Asking.of(lm, wire) for name, lm in readers.items()}
    whole = wire is not None and wire.carry == "prompt"
    if data.generated and split == "train":
        words = json.dumps([{name: each.words for name, each in tokenizing.items()}, count, whole])
        return list(_generated(_Generated(words, data, tokenizing, count, whole)))
    told = (tokenize(shared, tokenizing) for shared in data.contexts(split))
    return list(islice((passage for each in told for passage in each), count))


@dataclass(frozen=True)
class _Generated:
    """Generated passages of a training split. words: with the data, all that makes them what they are."""

    words: str
    data: PassageData
    tokenizing: Mapping[str, Asking] = field(compare=False)
    count: int = field(compare=False)
    whole: bool = field(compare=False)


@lru_cache(maxsize=1)
def _generated(wanted: _Generated) -> Sequence[Passage]:
    """Cached: most stages of a study train on the same passages, and making them takes long."""
    make, count = partial(_range_of, wanted.data, wanted.tokenizing), wanted.count
    if not wanted.whole:
        return [passage for shared in _at_once(make, range(count)) for passage in shared]
    passages: list[Passage] = []
    made, asked = 0, max(1, len(make(range(1))[0]))
    while len(passages) < count:
        # How many questions a context has is known once it is made.
        numbers = range(made, made + -(-(count - len(passages)) // asked))
        passages += [passage for shared in _at_once(make, numbers) for passage in shared]
        made = numbers.stop
        asked = max(1, len(passages) // made)
    return passages[:count]


def _at_once(make: Callable[[range], list[list[Passage]]], numbers: range) -> list[list[Passage]]:
    """What is made of the numbers, in several processes where there are many."""
    jobs = [numbers[at : at + PER_JOB] for at in range(0, len(numbers), PER_JOB)]
    if len(jobs) == 1:
        return make(jobs[0])
    return [shared for part in spread(make, jobs) for shared in part]


def _range_of(data: PassageData, tokenizing: Mapping[str, Asking], numbers: range) -> list[list[Passage]]:
    contexts = islice(data.contexts("train", numbers.start), len(numbers))
    return [tokenize(shared, tokenizing) for shared in contexts]


def groups(data: PassageData, split: Split, count: int, *, whole: bool) -> set[str]:
    """The groups of the first `count` passages. whole: prompts are carried, each question is a passage."""
    found: set[str] = set()
    for shared in data.contexts(split):
        if count <= 0:
            break
        found.add(shared.examples[0].group)
        count -= len(shared.examples) if whole else 1
    return found


def tokenize(shared: ContextExamples, tokenizing: Mapping[str, Asking]) -> list[Passage]:
    """One passage for a context; one for each of its questions where whole prompts are carried."""
    if shared.continues:
        return [_continued(shared.examples[0], tokenizing)]
    whole = any(asking.wire.carry == "prompt" for asking in tokenizing.values())
    first = shared.examples[0]
    if first.choices:  # then answers are how the prompts of all of them go on
        raise UserError(f"data: {first.id} has choices, expected an answer in words alone.")
    if not first.answers or not (first.context or whole):
        raise UserError(f"data: {first.id} has no context or no answer in words, expected both.")
    if shared.format is not None:  # an evaluation words the prompts of such a task so too
        tokenizing = {
            name: replace(asking, format=asking.format.around(shared.format))
            for name, asking in tokenizing.items()
        }
    if whole:
        return [_passage([example], _worded(example, tokenizing), tokenizing) for example in shared.examples]
    return [_passage(shared.examples, first.context, tokenizing)]


def _passage(examples: Sequence[Example], carried: str, tokenizing: Mapping[str, Asking]) -> Passage:
    told = {name: each.told(examples) for name, each in tokenizing.items()}
    return Passage(
        group=examples[0].group,
        context=carried,
        text={name: text for name, (text, _, _) in told.items()},
        pairs={name: pairs for name, (_, pairs, _) in told.items()},
        behind={name: behind for name, (_, _, behind) in told.items() if behind is not None},
    )


def _worded(example: Example, tokenizing: Mapping[str, Asking]) -> str:
    """The prompt that is carried, the same for all readers."""
    found = {each.format.body(example.context, example.question) for each in tokenizing.values()}
    if len(found) > 1:
        raise UserError(
            f"carry: found readers that word a prompt differently ({', '.join(tokenizing)}), expected one format, "
            "since all get one message."
        )
    return found.pop()


def _continued(example: Example, tokenizing: Mapping[str, Asking]) -> Passage:
    """A passage whose one question is the first token of the continuation, and whose answer is all the others."""
    told = {
        name: each.tokenizer(f" {example.answers[0]}", add_special_tokens=False)["input_ids"]
        for name, each in tokenizing.items()
    }
    return Passage(
        group=example.group,
        context=example.context,
        text={name: each.format.before(example.context, each) for name, each in tokenizing.items()},
        pairs={name: [(list(ids[:1]), list(ids[1:]))] for name, ids in told.items()},
    )
