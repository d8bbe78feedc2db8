"""Train a small latent wire in a few minutes: an encoder whose keys and values a frozen model reads.

python examples/train_wire.py wires/small
"""

import sys

import latentwire as lw

WIRE = {
    "source": "embedded:heron",
    "encoder": {"kind": "self", "rank": 16, "select": {"kind": "anchors", "ratio": 4}},  # one latent for 4 tokens
    "adapters": {"embedded:heron": {"kind": "native"}},
}


def main(folder, steps=100, limit=100):
    trained = lw.train(
        folder,
        WIRE,
        data={"kind": "world", "tiers": ["one_hop"]},
        objectives=[{"kind": "answer_ce"}, {"kind": "distill"}],
        steps=steps,
        passages=8,
        contexts=8 * steps,
        warmup_steps=steps // 10,
        eval_samples=32,
        eval_steps=max(steps // 4, 1),
    )
    results = lw.evaluate("embedded:heron", "one_hop", ["text", trained.wire, "nth,ratio=4", "none"], limit=limit)
    print(results)
    return trained, results


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "wires/small")
