"""Compress a passage once, without any question, and ask several questions about it.

python examples/compress_and_ask.py
"""

import latentwire as lw

PASSAGE = "Ada Brown was born in 1957. Ada Brown lives in Tarn. Ada Brown works as a baker."
QUESTIONS = ["When was Ada Brown born?", "Where does Ada Brown live?"]


def main(model="embedded:heron", wires=("text", "embedded:heron-4x", "evict,ratio=4", "none")):
    reader = lw.load(model)
    answers = {}
    for wire in wires:
        memory = lw.compress(reader, PASSAGE, wire)
        answers[wire] = memory.ask_all(QUESTIONS)
        print(f"{wire:18} {memory.nbytes:6} bytes  {answers[wire]}")
    return answers


if __name__ == "__main__":
    main()
