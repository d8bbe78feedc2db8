"""One model reads, another of a different family answers: what crosses, and what it is worth.

python examples/bridge_models.py
"""

import latentwire as lw

WRITTEN = "relay,source=embedded:heron,ratio=5"  # what the source writes, in as many tokens
ARMS = ["text", "embedded:heron-to-wren", "embedded:heron-to-wren:deranged", WRITTEN, "none"]


def main(limit=200):
    reader = lw.load("embedded:wren")
    results = lw.evaluate(reader, "one_hop", ARMS, limit=limit)
    print(results)
    for arm, tasks in results.gaps().items():
        print(f"{arm}: closes {tasks['one_hop'].closed} of the gap between the floor and the text")
    return results


if __name__ == "__main__":
    main()
