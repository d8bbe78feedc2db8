"""Made-up documents of the benchmarks: as official files, and as lm-eval's datasets on the hub have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REAL = Path(__file__).parents[3] / "shared" / "data"
"""Real files, where this checkout has them beside it."""

PIQA = [
    ("How do I catch a fish?", "Stand in the water and wait.", "Stand in the town  and sing ", 0),
    ("fish", "five of them", "twelve", 1),
    ("To count ten apples.\n", "one two three four", "é ñ", 1),
    ("fish", "in the river", "in the old town by the river", 0),
]
WINOGRANDE = [
    ("Ada gave Bob the apples because _ was kind.", "Ada", "Bob", "1"),
    ("The heron missed the fish, so _ stayed hungry by the river.", "the heron", "the fish", "1"),
    ("_ lives in the town, said Ada.", "Bob Brown", "the heron", "2"),
]
HELLASWAG = [
    (
        "Fishing",
        "A heron stands in [water] water.",
        "it",
        ["waits [step] .", "sings.", "flies  away.", "eats 12."],
        2,
    ),
    (
        "Counting [title] apples",
        "Ada has 12 apples.",
        "",
        ["One two.", "Gives 5 of them to Bob.", "x", "River"],
        1,
    ),
    ("Walking", "Bob walks by the river.", "then he", ["stops.", "goes on to the old town.", "a", "b"], 0),
]
SCIENCE = [
    ("Where does a heron live?", [("A", "by the river"), ("B", "in a book"), ("C", "town"), ("D", "12")], "A"),
    ("How many apples are 12 less 5?", [("1", "7"), ("2", "five"), ("3", "ten  eleven")], "1"),
    ("Ada and Bob have", [("A", "apples"), ("B", "no fish"), ("C", "the town"), ("D", "one two")], "C"),
]
FOUR_WAY = [row for row in SCIENCE if len(row[1]) == 4]
GSM8K = [
    ("Ada has 12 apples and gives 5 to Bob. How many has she?", "She has 12 - 5 = <<12-5=7>>7.\n#### 7"),
    ("How many are one thousand and two hundred?", "1000 + 200 = 1,200\n#### 1,200"),
]
GSM8K_TRAIN = [
    (f"Bob counts {n} apples and {n} fish. How many things?", f"He counts {n} + {n} = {2 * n}.\n#### {2 * n}")
    for n in range(2, 9)
]
"""What worked examples are drawn from, five for each question."""

Documents = list[dict[str, Any]]


def _science(rows: list[Any], field: str) -> Documents:
    return [
        {field: stem, "choices": {"text": [t for _, t in c], "label": [n for n, _ in c]}, "answerKey": key}
        for stem, c, key in rows
    ]


HUB: dict[str, Documents] = {
    "piqa": [{"goal": g, "sol1": a, "sol2": b, "label": gold} for g, a, b, gold in PIQA],
    "winogrande": [{"sentence": s, "option1": a, "option2": b, "answer": gold} for s, a, b, gold in WINOGRANDE],
    "hellaswag": [
        {"activity_label": what, "ctx_a": a, "ctx_b": b, "endings": ends, "label": str(gold)}
        for what, a, b, ends, gold in HELLASWAG
    ],
    "arc_easy": _science(SCIENCE, "question"),
    "arc_challenge": _science(SCIENCE[::-1], "question"),
    "openbookqa": _science(FOUR_WAY, "question_stem"),
    "gsm8k": [{"question": q, "answer": a} for q, a in GSM8K],
}
TRAIN: dict[str, Documents] = {"gsm8k": [{"question": q, "answer": a} for q, a in GSM8K_TRAIN]}
SPLITS = dict.fromkeys(("piqa", "winogrande", "hellaswag"), "validation")
"""The split that lm-eval evaluates, where it is not the test split."""


def write(folder: Path) -> Path:
    """All official files into `folder`."""
    _jsonl(folder / "piqa_valid.jsonl", [{k: row[k] for k in ("goal", "sol1", "sol2")} for row in HUB["piqa"]])
    (folder / "piqa_valid-labels.lst").write_text("".join(f"{row[3]}\n" for row in PIQA))
    questions = [{k: row[k] for k in ("sentence", "option1", "option2")} for row in HUB["winogrande"]]
    _jsonl(folder / "winogrande_dev.jsonl", [{"qID": f"q{n}", **row} for n, row in enumerate(questions)])
    (folder / "winogrande_dev-labels.lst").write_text("".join(f"{row[3]}\n" for row in WINOGRANDE))
    _jsonl(
        folder / "hellaswag_val.jsonl",
        [{**row, "label": int(row["label"]), "ind": n, "split": "val"} for n, row in enumerate(HUB["hellaswag"])],
    )
    _jsonl(folder / "ARC-Easy-Test.jsonl", [_official(row) for row in SCIENCE])
    _jsonl(folder / "ARC-Challenge-Test.jsonl", [_official(row) for row in SCIENCE[::-1]])
    header = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    lines = [(stem, " ".join(f"({n}) {text}" for n, text in choices), key) for stem, choices, key in FOUR_WAY]
    rows = [f"{n}-1\t{stem}\t{choices}\t{stem} {choices}\t{key}\n" for n, (stem, choices, key) in enumerate(lines)]
    (folder / "openbookqa_test.tsv").write_text(header + "".join(rows))
    _jsonl(folder / "gsm8k_test.jsonl", HUB["gsm8k"])
    _jsonl(folder / "gsm8k_train.jsonl", TRAIN["gsm8k"])
    return folder


def _official(row: Any) -> dict[str, Any]:
    stem, choices, key = row
    listed = [{"text": text, "label": label} for label, text in choices]
    return {"id": stem, "question": {"stem": stem, "choices": listed}, "answerKey": key}


def _jsonl(path: Path, rows: Documents) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
