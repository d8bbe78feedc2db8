"""A wire of your own in one file: deliver only the sentences that mention a name from the question.

python examples/own_wire.py
"""

from typing import Literal

import latentwire as lw


class Mentions(lw.TextWire):
    """The context's sentences that share a capitalised word with the question."""

    kind: Literal["mentions"] = "mentions"

    @property
    def question_aware(self):
        return True

    def word(self, context, question, lm):
        names = {word.strip("?.,") for word in question.split()[1:] if word[:1].isupper()}
        return " ".join(line for line in context.split(". ") if names & set(line.replace(".", "").split()))


def main(model="embedded:heron", limit=200):
    results = lw.evaluate(model, ["one_hop", "two_hop"], ["text", Mentions(), "none"], limit=limit)
    print(results)
    return results


if __name__ == "__main__":
    main()
