"""Names of people and places: made up of syllables, and never shared between splits."""

from __future__ import annotations

import random
import zlib
from functools import cache

from latentwire.tasks.base import Split

ONSETS = (
    "B", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "Z", "Br", "St", "Tr",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u")
# A name is a consonant, a vowel and one of these. None is the beginning of another, so no name
# stands inside another name, and an answer cannot hide in a name of the question.
ENDINGS = (
    "bel", "bor", "cath", "dan", "dek", "din", "dor", "fan", "fer", "gan", "gor", "gus", "kan", "ket", "kin",
    "lam", "len", "lith", "lor", "mar", "men", "min", "mos", "nal", "nek", "nim", "nor", "pel", "pin", "rak",
    "ren", "ric", "ron", "sek", "sim", "son", "tal", "ter", "tis", "tor", "van", "vek", "vin", "wen", "wick",
    "zan", "zel", "zor",
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
    beginnings = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    every = ((beginning, ending) for beginning in beginnings for ending in ENDINGS)
    return tuple(parts for parts in every if split_of("".join(parts)) == split)


def draw_names(random_: random.Random, split: Split, count: int) -> list[str]:
    """`count` names of a split, no two with the same beginning or the same ending.

    So the names of one passage are told apart easily: what is hard about the world is to be who
    is related to whom, not spelling.
    """
    pool = names(split)
    drawn: list[str] = []
    taken: set[str] = set()
    while len(drawn) < count:
        beginning, ending = random_.choice(pool)
        if beginning not in taken and ending not in taken:
            taken |= {beginning, ending}
            drawn.append(beginning + ending)
    return drawn


def draw_tags(random_: random.Random, count: int) -> list[str]:
    """`count` things to be known by ("the red hat"), each of another colour."""
    return [f"the {colour} {random_.choice(GARMENTS)}" for colour in random_.sample(COLOURS, count)]
