"""Names of people and places: made up of syllables, and never shared between splits."""

from __future__ import annotations

import random
import zlib
from functools import cache

from latentwire.tasks.base import Split

# A name is a beginning and an ending: "Marin". Beginnings end and endings start at the border
# between consonant and vowel and have a fixed shape, so no name stands inside another name and an
# answer cannot hide in a name of the question.
BEGINNINGS = tuple(
    onset + vowel + coda
    for onset, codas in (
        ("B", "nr"), ("D", "lv"), ("F", "lr"), ("G", "dr"), ("H", "lv"), ("J", "rs"), ("K", "lm"), ("L", "nt"),
        ("M", "rz"), ("N", "dv"), ("P", "lt"), ("R", "mn"), ("S", "kl"), ("T", "nr"), ("V", "lk"), ("W", "dt"),
        ("Z", "bn"),
    )
    for vowel in "aeiou"
    for coda in codas
)  # fmt: skip
ENDINGS = (
    "ab", "ak", "am", "an", "as", "eb", "ek", "el", "em", "en", "er", "es", "ib", "id", "ik", "im", "in", "is",
    "ob", "od", "ol", "om", "on", "or", "os", "ub", "ud", "uk", "um", "un", "ur", "us",
)  # fmt: skip

COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink", "golden", "purple", "silver", "orange")
GARMENTS = ("hat", "coat", "scarf", "shirt", "belt", "cloak", "bag", "ring")
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


def split_of(name: str) -> Split:
    """The split that owns a name, by a hash of the name itself: 60 % train, 20 % each for the others."""
    bucket = zlib.crc32(name.encode()) % 10
    return "train" if bucket < 6 else "validation" if bucket < 8 else "test"


@cache
def names(split: Split) -> tuple[tuple[str, str], ...]:
    """All names of a split, of people and places alike, each as its beginning and its ending."""
    every = ((beginning, ending) for beginning in BEGINNINGS for ending in ENDINGS)
    return tuple(parts for parts in every if split_of("".join(parts)) == split)


def draw_names(random_: random.Random, split: Split, count: int) -> list[str]:
    """`count` names of a split, no two with the same beginning.

    So the names of one passage are told apart easily: what is hard about the world is to say who
    is related to whom, not to spell.
    """
    pool = names(split)
    drawn: dict[str, str] = {}
    while len(drawn) < count:
        beginning, ending = random_.choice(pool)
        drawn.setdefault(beginning, beginning + ending)
    return list(drawn.values())


def draw_tags(random_: random.Random, count: int) -> list[str]:
    """`count` things to be known by ("the red hat"), each of another colour."""
    return [f"the {colour} {random_.choice(GARMENTS)}" for colour in random_.sample(COLOURS, count)]
