"""Numbers of worked solutions: `#### N`, as GSM8K ends them (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from decimal import Decimal

MARK = "####"
"""What stands before the result."""

# Possessive quantifiers: without them `#### 13/4` would give back digits and be read as 1. As it
# is, a fraction is unreadable rather than its numerator.
_SOLUTION = re.compile(r"####\s*([-+]?\$?[-+]?(?:[0-9][0-9,]*+(?:\.[0-9]*+)?+|\.[0-9]++))(?!\s*/\s*[0-9])")


def solution_number(text: str) -> Decimal | None:
    """The number after the first readable `####`, or None where there is none.

    Commas, `$`, units and a trailing period do not count, and 12.0 equals 12. The first, as in lm-eval's
    `strict-match` filter for GSM8K: what follows it is the model making up the next problem.

    Example:
        >>> solution_number("3 + 2 = 5 #### $5.00 a day")
        Decimal('5.00')
    """
    found = _SOLUTION.search(text)
    return Decimal(re.sub(r"[,$]", "", found[1])) if found else None
