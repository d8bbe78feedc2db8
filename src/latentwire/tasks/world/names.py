"""Names of people and places: made up of syllables, and never shared between splits."""

from __future__ import annotations

import random
import zlib
from functools import cache

from latentwire.tasks.base import Split

ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
VOWELS = ("a", "e", "i", "o", "u")
# Every name ends in one consonant after exactly two vowels, so no name is the beginning of
# another, and an answer cannot hide inside a name of the question.
RHYMES = ("al", "an", "ek", "el", "em", "in", "ir", "on", "or", "os", "um", "us")

COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink", "golden", "striped")
GARMENTS = ("hat", "coat", "scarf", "shirt", "belt", "cloak", "bag", "ring")
MATERIALS = (
    "copper", "silk", "tea", "salt", "glass", "rope", "wool", "paper", "honey", "lamp", "clock", "boat",
)  # fmt: skip
TRADES = (
    "maker", "seller", "buyer", "mender", "carrier", "keeper", "painter", "tester", "sorter", "cutter",
    "washer", "guard",
)  # fmt: skip
JOBS = tuple(f"{material} {trade}" for material in MATERIALS for trade in TRADES)
TAGS = tuple(f"the {colour} {garment}" for colour in COLOURS for garment in GARMENTS)
YEARS = tuple(str(year) for year in range(1900, 2000))
ACQUAINTANCES = (
    "friend", "cousin", "teacher", "neighbour", "boss", "rival", "partner", "landlord", "doctor", "guide",
)  # fmt: skip


def split_of(name: str) -> Split:
    """The split that owns a name, by a hash of the name itself: 60 % train, 20 % each for the others."""
    bucket = zlib.crc32(name.encode()) % 10
    return "train" if bucket < 6 else "validation" if bucket < 8 else "test"


@cache
def names(split: Split) -> tuple[str, ...]:
    """All names of a split, of people and places alike."""
    every = (
        (first + vowel + second + rhyme).capitalize()
        for first in ONSETS
        for vowel in VOWELS
        for second in ONSETS
        for rhyme in RHYMES
    )
    return tuple(name for name in every if split_of(name) == split)


def draw_names(random_: random.Random, split: Split, count: int) -> list[str]:
    """`count` different names of a split."""
    return random_.sample(names(split), count)
