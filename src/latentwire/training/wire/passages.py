"""What a wire is trained on: contexts, each with several questions, as the tokens of every reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import groupby, islice

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Split
from latentwire.training.data import ContextExamples, PassageData
from latentwire.training.jobs import spread, without_collection
from latentwire.training.wire import passage_cache
from latentwire.training.wire.asking import Asked, Asking
from latentwire.training.wire.passage import Passage
from latentwire.training.wire.passage_cache import Packed
from latentwire.wires.latent.latent_config import LatentConfig

PER_JOB = 500
"""Passages that one process makes at a time; fewer generated ones are made in this one."""
AT_ONCE = 2000
"""Contexts of a file that are tokenized in one call; more are tokenized in several processes."""


def passages(
    data: PassageData,
    readers: Mapping[str, LM],
    split: Split,
    count: int,
    wire: LatentConfig | None = None,
    log: Callable[[str], None] = lambda remark: None,
) -> list[Passage]:
    """The first `count` passages of a split, always the same ones.

    Many passages of a file or of the hub are read from a cache the second time (`passage_cache`).

    Args:
        wire: the wire that is trained on them. One that carries whole prompts gets a passage for each question.
        log: called with how the data was read, such as how many rows were skipped.

    Raises:
        UserError: the data cannot be read, or is without contexts and answers in words; readers word a prompt
            differently where prompts are carried.
    """
    with without_collection():
        return _made(data, readers, split, count, wire, log)


def _made(
    data: PassageData,
    readers: Mapping[str, LM],
    split: Split,
    count: int,
    wire: LatentConfig | None,
    log: Callable[[str], None],
) -> list[Passage]:
    tokenizing = {name: Asking.of(lm, wire) for name, lm in readers.items()}
    whole = wire is not None and wire.carry == "prompt"
    if data.generated and split == "train":
        words = json.dumps([{name: asking.identity for name, asking in tokenizing.items()}, count, whole])
        return list(_generated(_Generated(words, data, tokenizing, count, whole)))
    key = passage_cache.key(data, tokenizing, split)
    if (cached := passage_cache.load(key, count)) is not None:
        for remark in cached.remarks:
            log(remark)
        return cached.passages
    packed, made, complete = _read(data.contexts(split), tokenizing, count, whole=whole)
    remarks = data.remarks()
    for remark in remarks:
        log(remark)
    if packed is not None or len(made) >= passage_cache.FEWEST:
        passage_cache.save(key, packed or Packed.of(made), remarks, complete=complete)
    return packed.passages(count) if packed is not None else made[:count]


def _read(
    contexts: Iterator[ContextExamples], tokenizing: Mapping[str, Asking], count: int, *, whole: bool
) -> tuple[Packed | None, list[Passage], bool]:
    """At least `count` passages, if there are as many, and whether they are all that there are.

    Many are tokenized in several processes, which hand them over packed.
    """
    made: list[Passage] = []
    if not whole and count > AT_ONCE:
        # A context is a passage; where whole prompts are carried it may be many.
        some = list(islice(contexts, count))
        if len(some) > AT_ONCE:
            jobs = [some[at : at + PER_JOB] for at in range(0, len(some), PER_JOB)]
            return Packed.joined(spread(partial(_packed, tokenizing), jobs)), [], len(some) < count
        contexts = iter(some)
    complete = False
    while len(made) < count and not complete:
        part = list(islice(contexts, min(AT_ONCE, count - len(made))))
        complete = not part
        made += [passage for of_context in tokenize(part, tokenizing) for passage in of_context]
    return None, made, complete


def _packed(tokenizing: Mapping[str, Asking], contexts: Sequence[ContextExamples]) -> Packed:
    return Packed.of([passage for of_context in tokenize(contexts, tokenizing) for passage in of_context])


def identity(data: PassageData, readers: Mapping[str, LM], wire: LatentConfig | None = None) -> str:
    """A digest of the data, the tokenizers and the prompt formats: of all that makes passages what they are."""
    return passage_cache.key(data, {name: Asking.of(lm, wire) for name, lm in readers.items()}, "train")


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
    return tokenize(list(islice(data.contexts("train", numbers.start), len(numbers))), tokenizing)


def groups(data: PassageData, split: Split, count: int, *, whole: bool) -> set[str]:
    """The groups of the first `count` passages. whole: prompts are carried, each question is a passage."""
    seen: set[str] = set()
    for shared in data.contexts(split):
        if count <= 0:
            break
        seen.add(shared.examples[0].group)
        count -= len(shared.examples) if whole else 1
    return seen


def tokenize(contexts: Sequence[ContextExamples], tokenizing: Mapping[str, Asking]) -> list[list[Passage]]:
    """For each context its passage; one for each of its questions where whole prompts are carried.

    Raises:
        UserError: as `passages`.
    """
    made: list[list[Passage]] = []
    for (format_, continues), alike in groupby(contexts, key=lambda shared: (shared.format, shared.continues)):
        groups_ = [shared.examples for shared in alike]
        if continues:
            asked = {name: asking.continuations([g[0] for g in groups_]) for name, asking in tokenizing.items()}
            made += [[passage] for passage in _passages(groups_, [g[0].context for g in groups_], asked)]
            continue
        whole = any(asking.wire.carry == "prompt" for asking in tokenizing.values())
        for examples in groups_:
            _check(examples[0], whole)
        worded = dict(tokenizing)
        if format_ is not None:  # an evaluation words the prompts of such a task so too
            worded = {name: replace(asking, format=format_) for name, asking in tokenizing.items()}
        sizes = [len(examples) if whole else 1 for examples in groups_]
        if whole:
            groups_ = [[example] for examples in groups_ for example in examples]
        carried = [_worded(examples[0], worded) if whole else examples[0].context for examples in groups_]
        asked = {name: asking.contexts(groups_) for name, asking in worded.items()}
        passages_ = iter(_passages(groups_, carried, asked))
        made += [list(islice(passages_, size)) for size in sizes]
    return made


def _check(first: Example, whole: bool) -> None:
    if first.choices:  # then answers are how the prompts of all of them continue
        raise UserError(f"data: {first.id} has choices, expected an answer in words alone.")
    if not first.answers or not (first.context or whole):
        raise UserError(f"data: {first.id} has no context or no answer in words, expected both.")


def _passages(
    groups_: Sequence[Sequence[Example]], carried: Sequence[str], asked: Mapping[str, Sequence[Asked]]
) -> list[Passage]:
    return [
        Passage(
            group=examples[0].group,
            context=context,
            text={name: rows[at].text for name, rows in asked.items()},
            pairs={name: rows[at].pairs for name, rows in asked.items()},
            after_latents={
                name: after for name, rows in asked.items() if (after := rows[at].after_latents) is not None
            },
        )
        for at, (examples, context) in enumerate(zip(groups_, carried, strict=True))
    ]


def _worded(example: Example, tokenizing: Mapping[str, Asking]) -> str:
    """The prompt that is carried, the same for all readers."""
    bodies = {asking.format.body(example.context, example.question) for asking in tokenizing.values()}
    if len(bodies) > 1:
        raise UserError(
            f"carry: found readers that word a prompt differently ({', '.join(tokenizing)}), expected one format, "
            "since all get one message."
        )
    return bodies.pop()
