"""What changes when a model reads its prompt bidirectionally instead of causally?

python examples/evaluate_mask.py
"""

import latentwire as lw


def main(model="embedded:heron", limit=200):
    reader = lw.load(model)
    results = lw.evaluate(reader, ["one_hop", "two_hop"], ["text", "text,mask=prefix", "none"], limit=limit)
    print(results)  # scores with 95 % intervals, beside the floors
    print("bidirectional minus causal:", results.compare("text,mask=prefix", "text"))
    print("does the audit find a leak?", lw.audit(reader, "text,mask=prefix").problems or "no")
    return results


if __name__ == "__main__":
    main()
