"""What a wire is trained on: contexts, each with several questions, as the tokens of every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby, islice

from latentwire.errors import UserError
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Example
from latentwire.tasks import resolve
from latentwire.tasks.base import Split, Task
from latentwire.tasks.files import digest
from latentwire.tasks.world.sums import WorldTier, training_passage
from latentwire.training.jobs import spread
from latentwire.training.wire.config import PassageData, TaskPassages, TextPassages, WorldPassages
from latentwire.training.wire.texts import pieces
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.reader_text import asking

PER_JOB = 500
"""Passages that one process makes at a time; fewer are made here."""

HELD_OUT = 20
"""One group in so many is kept for evaluation."""

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
        ends = sorted(self.eos_ids)[:1]
        return [[*answer, *ends] for answer in answers]

    def _answers(self, examples: Sequence[Example]) -> list[list[int]]:
        encoded = self.format.encode_all([replace(each, choices=()) for each in examples], self)
        return [answers[0] for _, answers in encoded]


@dataclass(frozen=True)
class Passage:
    """One context. group: what it shares with others. text: by reader, the ids of it and of what stands before.
    pairs: by reader, its questions; the same questions in the same order for all readers.

    behind: by reader, what is asked behind latents, where that is something else. Where whole prompts are carried,
    `context` and `text` are the prompt, and `singly` holds a passage for each question.
    """

    group: str
    context: str
    text: dict[str, list[int]]
    pairs: dict[str, list[Pair]]
    behind: dict[str, list[list[int]]] = field(default_factory=dict)
    singly: tuple[Passage, ...] = ()

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
    if isinstance(data, TextPassages):
        return [_told(tokenizing, *piece) for piece in pieces(data, split, count)]
    if isinstance(data, TaskPassages) or split != "train":
        told = (
            _tokenize(_worded_as(words, tokenizing), examples) for words, examples in _of_task(data, split, whole)
        )
        return list(islice((one for each in told for one in each.singly or (each,)), count))
    words = json.dumps([{name: each.words for name, each in tokenizing.items()}, data.tiers, count, whole])
    return list(_of_training(_World(words, data.tiers, tokenizing, count, whole)))


@dataclass(frozen=True)
class _World:
    """Passages of the world's training split. words: tells them from others; what follows need not be compared."""

    words: str
    tiers: Sequence[WorldTier] = field(compare=False)
    tokenizing: Mapping[str, Asking] = field(compare=False)
    count: int = field(compare=False)
    whole: bool = field(compare=False)


@lru_cache(maxsize=1)
def _of_training(wanted: _World) -> Sequence[Passage]:
    """Kept: stages of a study mostly train on the same ones, and to make them takes long."""
    make, count = partial(_of_world, wanted.tiers, wanted.tokenizing), wanted.count
    if not wanted.whole:
        return _at_once(make, range(count))
    found: list[Passage] = []
    made, asked = 0, max(1, len(make(range(1))[0].singly))
    while len(found) < count:
        # How many questions a passage has is known once it is made.
        numbers = range(made, made + -(-(count - len(found)) // asked))
        found += [one for each in _at_once(make, numbers) for one in each.singly]
        made = numbers.stop
        asked = max(1, len(found) // made)
    return found[:count]


def _at_once(make: Callable[[range], list[Passage]], numbers: range) -> list[Passage]:
    """What is made of the numbers, in several processes where they are many."""
    jobs = [numbers[at : at + PER_JOB] for at in range(0, len(numbers), PER_JOB)]
    if len(jobs) == 1:
        return make(jobs[0])
    return [each for part in spread(make, jobs) for each in part]


def _of_world(tiers: Sequence[WorldTier], tokenizing: Mapping[str, Asking], numbers: range) -> list[Passage]:
    return [_tokenize(tokenizing, training_passage(tiers, number)) for number in numbers]


def _worded_as(words: PromptFormat | None, tokenizing: Mapping[str, Asking]) -> Mapping[str, Asking]:
    """The readers with a task's own prompt format, where it has one: an evaluation words its prompts so too."""
    if words is None:
        return tokenizing
    return {name: replace(each, format=words) for name, each in tokenizing.items()}


def _of_task(
    data: WorldPassages | TaskPassages, split: Split, whole: bool
) -> Iterator[tuple[PromptFormat | None, list[Example]]]:
    """Examples that share a context with their task's prompt format, the tasks taking turns.

    whole: there may be no context.
    """
    named, path = ([data.task], data.data) if isinstance(data, TaskPassages) else (list(data.tiers), None)
    tasks = resolve(named, path)
    if isinstance(data, TaskPassages) and path is None and not all(task.apart for task in tasks):
        raise UserError(
            f"data: found {data.task} without a file, whose only examples are those it is evaluated on; expected "
            "data, a file to train on."
        )
    examples_of = partial(kept, split) if isinstance(data, TaskPassages) else lambda task: task.source(split)
    streams = [
        (task.format, groupby(examples_of(task), key=lambda each: (each.group, each.context))) for task in tasks
    ]
    while streams:
        for words, stream in list(streams):
            found = next(stream, None)
            if found is None:
                streams.remove((words, stream))
                continue
            first, *others = found[1]
            if first.choices:  # then answers are how the prompts of all of them go on
                raise UserError(f"data: {first.id} has choices, expected an answer in words alone.")
            if not first.answers or not (first.context or whole):
                raise UserError(f"data: {first.id} has no context or no answer in words, expected both.")
            yield words, [first, *others]


def groups(data: WorldPassages | TaskPassages, split: Split, count: int, *, whole: bool) -> set[str]:
    """The groups that the first `count` passages are of. whole: prompts are carried, each a passage."""
    found: set[str] = set()
    for _, examples in _of_task(data, split, whole):
        if count <= 0:
            break
        found.add(examples[0].group)
        count -= len(examples) if whole else 1
    return found


def kept(split: Split, task: Task) -> Iterator[Example]:
    """A task's examples of a split, where these lie apart. Else one group in `HELD_OUT`, by hash, is kept for
    evaluation, whole."""
    if task.apart:
        yield from task.source(split)
        return
    for example in task.source("test"):
        kept = int(digest(example.group)[:8], 16) % HELD_OUT == 0
        if kept == (split != "train"):
            yield example


def _tokenize(tokenizing: Mapping[str, Asking], examples: Sequence[Example]) -> Passage:
    if any(each.wire.carry == "prompt" for each in tokenizing.values()):
        singly = tuple(_passage(tokenizing, [each], _worded(tokenizing, each)) for each in examples)
        return replace(singly[0], singly=singly)
    return _passage(tokenizing, examples, examples[0].context)


def _passage(tokenizing: Mapping[str, Asking], examples: Sequence[Example], carried: str) -> Passage:
    told = {name: each.told(examples) for name, each in tokenizing.items()}
    return Passage(
        group=examples[0].group,
        context=carried,
        text={name: text for name, (text, _, _) in told.items()},
        pairs={name: pairs for name, (_, pairs, _) in told.items()},
        behind={name: behind for name, (_, _, behind) in told.items() if behind is not None},
    )


def _worded(tokenizing: Mapping[str, Asking], example: Example) -> str:
    """The prompt that is carried, the same for all readers."""
    found = {each.format.body(example.context, example.question) for each in tokenizing.values()}
    if len(found) > 1:
        raise UserError(
            f"carry: found readers that word a prompt differently ({', '.join(tokenizing)}), expected one format, "
            "since all get one message."
        )
    return found.pop()


def _told(tokenizing: Mapping[str, Asking], group: str, context: str, rest: str) -> Passage:
    """A passage whose one question is the first token of what follows, and whose answer is all the others."""
    told = {
        name: each.tokenizer(f" {rest}", add_special_tokens=False)["input_ids"]
        for name, each in tokenizing.items()
    }
    return Passage(
        group=group,
        context=context,
        text={name: each.format.before(context, each) for name, each in tokenizing.items()},
        pairs={name: [(list(ids[:1]), list(ids[1:]))] for name, ids in told.items()},
    )
