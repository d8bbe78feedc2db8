"""The score of a reader that finds the right kind of answer but ignores whom the question is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from latentwire.lm.prompts import Example


def type_floor(examples: Sequence[Example]) -> float:
    """The best score, in [0, 1], of a rule that looks at the relation only.

    The rules are: always the first value stated, always the second, … (and the last), and the
    answer that is most frequent in `examples`.

    It is not a bound on every reader without understanding. One that uses the name in the question, if only to
    exclude
    a value, can score more: in `two_hop` the named person's own value is never the answer, so that guessing among
    the other five earns 1/5 where this floor is 1/6.

    Example:
        >>> type_floor(resolve(["two_hop"], None)[0].examples("test", 600))

    Raises:
        ValueError: an example has no `candidates`, so that the floor is unknown.
    """
    if not examples or not all(example.candidates for example in examples):
        raise ValueError("type_floor needs examples that have candidates")
    right: Counter[str] = Counter()
    for example in examples:
        answer = example.choices[example.gold] if example.choices else example.answers[0]
        right[f"answer {answer}"] += 1
        right["the last stated"] += example.candidates[-1] == answer
        right.update(f"stated {k}" for k, value in enumerate(example.candidates) if value == answer)
    return max(right.values()) / len(examples)
