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

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = (
    "\u0590-\u08ff"  # Hebrew, Arabic, Syriac, Thaana and their extensions
    "\u0e00-\u0fff\u1000-\u109f\u1700-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f"  # Thai to Khmer, Balinese
    "\u1100-\u11ff\ua960-\ua9ff\uaa60-\uaadf\uac00-\ud7ff"  # Hangul, Javanese, further Myanmar and Tai Viet
    "\u2e80-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han, kana, bopomofo
)
_SPACED_LETTER = rf"[^\W{_UNSPACED}]"
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


def pattern(answers: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `answers` as they are written, the longest first, as whole words where there are words.

    Example:
        >>> pattern(["art"]).findall("Martha likes art.")
        ['art']
    """
    return re.compile("|".join(_bounded(answer) for answer in sorted(answers, key=len, reverse=True)))


def contains(text: str, part: str) -> bool:
    """Whether the normalized `part` (at least one character) is mentioned in the normalized `text`."""
    return part in text and bool(part) and re.search(_bounded(part), text) is not None


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


def _bounded(answer: str) -> str:
    """A pattern of `answer` that ends at no letter of the same word."""
    before = rf"(?<!{_SPACED_LETTER})" if re.match(_SPACED_LETTER, answer) else ""
    after = rf"(?!{_SPACED_LETTER})" if re.search(rf"{_SPACED_LETTER}\Z", answer) else ""
    return before + re.escape(answer) + after
