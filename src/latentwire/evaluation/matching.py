"""Normalized text, and whether a text mentions an answer, in any script.

Where a script puts blanks between words, an answer is mentioned as whole words: `art` is not mentioned in
`Martha`. Where it does not (Chinese, Japanese, Thai, …), or attaches particles and prefixes to words (Korean,
Arabic, Hebrew),
any run of the same characters is a mention: `北京` is mentioned in `住在北京市区`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = (
    "\u0590-\u08ff"  # Hebrew, Arabic, Syriac, Thaana and their extensions
    "\u0e00-\u0fff\u1000-\u109f\u1700-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f"  # Thai to Khmer, Balinese
    "\u1100-\u11ff\ua960-\ua9ff\uaa60-\uaadf\uac00-\ud7ff"  # Hangul, Javanese, further Myanmar and Tai Viet
    "\u2e80-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han, kana, bopomofo
)
_SPACED_LETTER = re.compile(rf"[^\W{_UNSPACED}]")
_BESIDE_UNSPACED = re.compile(rf"\s+(?=[{_UNSPACED}])|(?<=[{_UNSPACED}])\s+")
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def normalize(text: str) -> str:
    """`text` as SQuAD v1.1 compares it: lower case, no ASCII punctuation, no articles, single spaces.

    The definition is that of the official evaluation script (Rajpurkar et al. 2016).

    Example:
        >>> normalize("The  cat's hat.")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exchanged(text: str, answers: Iterable[str], value: str) -> tuple[str, int]:
    """`text` with any of `answers` exchanged for `value`, and how often that was.

    They are found as they are written, the longest first, as whole words where there are words.

    Example:
        >>> exchanged("Martha likes art.", ["art"], "music")
        ('Martha likes music.', 1)
    """
    known = sorted(filter(None, answers), key=len, reverse=True)
    made, start, count = "", 0, 0
    while starts := [at for answer in known if (at := text.find(answer, start)) >= 0]:
        at = min(starts)
        found = next((each for each in known if text.startswith(each, at) and _whole(text, at, len(each))), None)
        end = at + (len(found) if found else 1)
        made += text[start:at] + (value if found else text[at:end])
        start, count = end, count + (found is not None)
    return made + text[start:], count


def contains(text: str, part: str) -> bool:
    """Whether the normalized `part` (at least one character) is mentioned in the normalized `text`."""
    at = text.find(part) if part else -1
    while at >= 0 and not _whole(text, at, len(part)):
        at = text.find(part, at + 1)
    return at >= 0


def mentions(text: str, answer: str) -> bool:
    """Whether `text` mentions `answer` in any spelling that differs in case, width, punctuation or articles only.

    Punctuation inside words is read both ways: `Paris-based` mentions `Paris`, and `U.S.` mentions `US`.

    Example:
        >>> mentions("王芳也住在北京郊外。", "北京"), mentions("Martha sleeps.", "art")
        (True, False)
    """
    return any(
        contains(spelled, wanted) for spelled, wanted in zip(spellings(text), spellings(answer), strict=True)
    )


def spellings(text: str) -> tuple[str, str]:
    """`text` normalized with its punctuation dropped, and with its punctuation read as blanks.

    Blanks beside characters of scripts without blanks go: they are line breaks and typography.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    marks = {ord(letter): None for letter in set(folded) if unicodedata.category(letter)[0] in "PS"}
    both = (normalize(folded.translate(dict.fromkeys(marks, mark))) for mark in ("", " "))
    dropped, blank = (_BESIDE_UNSPACED.sub("", each) if _HAS_UNSPACED.search(each) else each for each in both)
    return dropped, blank


def _whole(text: str, start: int, length: int) -> bool:
    """Whether a part of a text begins and ends at no letter of the same word."""
    # Not as a pattern: with so many ranges of letters, each answer's takes milliseconds to compile.
    end = start + length
    before = start > 0 and _in_words(text[start]) and _in_words(text[start - 1])
    after = end < len(text) and _in_words(text[end - 1]) and _in_words(text[end])
    return not (before or after)


@lru_cache(maxsize=4096)
def _in_words(letter: str) -> bool:
    """Whether it is a letter or digit of a script that puts blanks between words."""
    return _SPACED_LETTER.match(letter) is not None
