"""The study that measures speed and memory of a wire's training runs on a small model and files of rows."""

import json
from pathlib import Path

from latentwire.runs.log import Log
from latentwire.studies import loading, runner

STUDY = Path(__file__).parents[2] / "examples" / "squad_speed.yaml"
ROWS = [
    {"context": f"Ada has {p} apples.", "question": f"How many has Ada {q}?", "answers": [str(p)], "group": str(p)}
    for p in range(12)
    for q in range(2)
]
SMALL = ("steps=2", "passages=4", "step_tokens=256", "eval_samples=2", "eval_steps=2", "log_steps=1")


def test_it_trains_on_rows_in_chat_form_and_logs_tokens_and_memory(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    files = [f"files.{name}={tmp_path / name}.jsonl" for name in ("train", "validation")]
    # The embedded model has no chat template.
    small = [f"stages.wire.{change}" for change in SMALL] + ["prompts={}", "stages.wire.wire.encoder.rank=2"]
    study = loading.load(str(STUDY), ["models.reader=embedded:heron", *files, *small])
    runner.run(study, tmp_path / "runs", Log())
    (log,) = (tmp_path / "runs").rglob("log.txt")
    assert "memory: weights" in log.read_text()
    (diagnostics,) = (tmp_path / "runs").rglob("diagnostics.jsonl")
    lines = [json.loads(line) for line in diagnostics.read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2]
    assert all(line["tokens"] > 0 and line["seconds"] > 0 and line["memory_gib"] > 0 for line in trained)
