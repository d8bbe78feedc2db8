"""A wire of your own in one file: keep the half of the keys and values whose keys have the smallest norm.

python examples/own_wire.py
cd examples && latentwire eval --model embedded:heron --task one_hop --wire own_wire:KeyNorm,ratio=2
"""

import latentwire as lw


class KeyNorm(lw.ScoredWire):
    """Keeps the keys of smallest norm (Devoto et al., 2406.11430)."""

    def score(self, lm, prefix):
        return [-keys.norm(dim=-1) for keys in self.memory(lm, prefix).keys]


def main(model="embedded:heron", limit=200):
    results = lw.evaluate(model, "one_hop", ["text", KeyNorm(ratio=2), "nth,ratio=2", "none"], limit=limit)
    print(results)
    return results


if __name__ == "__main__":
    main()
