"""Names of people and places: made up of syllables, and never shared between splits."""

from __future__ import annotations

import random
import zlib
from functools import cache

from latentwire.tasks.base import Split

SYLLABLES = tuple(
    onset + rhyme
    for onset in (
        "b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "h", "j", "w", "st",
        "br", "dr", "tr", "kl",
    )
    for rhyme in ("a", "e", "i", "o", "u", "ar", "en", "il", "on")
)  # fmt: skip

THREE_SYLLABLES = 0.3

COLOURS = (
    "red",
    "blue",
    "green",
    "white",
    "black",
    "brown",
    "grey",
    "pink",
    "golden",
    "purple",
    "silver",
    "orange",
)
GARMENTS = ("hat", "coat", "scarf", "shirt", "belt", "cloak", "bag", "ring")
TAGS = tuple(f"the {colour} {garment}" for colour in COLOURS for garment in GARMENTS)
JOBS = (
    "actor", "baker", "barber", "butcher", "captain", "clerk", "cook", "dancer", "dentist", "driver", "editor",
    "farmer", "fisher", "gardener", "hunter", "jeweller", "judge", "lawyer", "mason", "miner", "monk", "nurse",
    "painter", "pilot", "plumber", "poet", "porter", "printer", "sailor", "singer", "smith", "soldier", "tailor",
    "trader", "tutor", "vet", "waiter", "warden", "weaver", "writer",
)  # fmt: skip
YEARS = tuple(str(year) for year in range(1900, 2000))
ACQUAINTANCES = (
    "friend", "cousin", "teacher", "neighbour", "boss", "rival", "partner", "landlord", "doctor", "guide",
)  # fmt: skip


def split_of(stem: str) -> Split:
    """The split that owns all names on a stem, by a hash: 60 % train, 20 % each for the others."""
    bucket = zlib.crc32(stem.encode()) % 10
    return "train" if bucket < 6 else "validation" if bucket < 8 else "test"


@cache
def stems(split: Split) -> tuple[str, ...]:
    """The first two syllables of a split's names."""
    every = ((first + second).capitalize() for first in SYLLABLES for second in SYLLABLES)
    return tuple(stem for stem in every if split_of(stem) == split)


def draw_names(random_: random.Random, split: Split, count: int) -> list[str]:
    """`count` names of a split, of two or three syllables; none is the beginning of another.

    There are millions: a model that is to learn to copy names must not be able to learn them by heart.
    """
    pool = stems(split)
    drawn: list[str] = []
    while len(drawn) < count:
        name = random_.choice(pool)
        if random_.random() < THREE_SYLLABLES:
            name += random_.choice(SYLLABLES)
        if not any(name.startswith(other) or other.startswith(name) for other in drawn):
            drawn.append(name)
    return drawn


def draw_tags(random_: random.Random, count: int, shared_colours: bool) -> list[str]:
    """`count` different things to be known by ("the red hat").

    Without `shared_colours` the colour alone tells them apart.
    """
    if shared_colours:
        return random_.sample(TAGS, count)
    return [f"the {colour} {random_.choice(GARMENTS)}" for colour in random_.sample(COLOURS, count)]
