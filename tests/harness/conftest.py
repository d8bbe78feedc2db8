"""A model on disk, and lm-eval tasks of one's own beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from latentwire.lm.loading import weights
from latentwire.lm.prompt_format import PromptFormat
from tests.support.models import tiny_model, tiny_tokenizer

DOCUMENTS: list[dict[str, Any]] = [
    {"context": "Ada has 12 apples.", "choices": ["12", "five of them", "one two", "7"], "label": 0},
    {
        "context": "The heron stood in the shallow water ",
        "choices": ["and waited", "and", "x", "for  fish"],
        "label": 1,
    },
    {
        "context": "Ada has 12 apples. Where?",
        "choices": ["in the old town", "in the river", "é", "Bob"],
        "label": 3,
    },
    {"context": "Where does Ada live?", "choices": ["in the old", "in the old town", "no", "ten"], "label": 2},
]
KINDS = {
    "choose": "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\n"
    "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    "roll": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{context}}"\n'
    "metric_list:\n  - metric: word_perplexity\n",
    "write": "output_type: generate_until\ndoc_to_target: label\ngeneration_kwargs:\n  until: [' t', 'zz']\n"
    "  max_gen_toks: 9\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n",
}
FOLDERS: dict[str, tuple[str, dict[str, bool]]] = {
    "llama": ("llama", {}),
    "bos": ("gpt_neox", {"bos": True}),
    "merging": ("qwen3", {"merge_blanks": True}),
}


@pytest.fixture(autouse=True)
def no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval runs `pip list` after every evaluation: more work than the evaluations here."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (family, how) in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp("models") / name
        weights.save(tiny_model(family), tiny_tokenizer(**how), PromptFormat(), made[name])
    made["other"] = tmp_path_factory.mktemp("models") / "other"
    weights.save(tiny_model(seed=1), tiny_tokenizer(), PromptFormat(), made["other"])
    return made


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks `lw_choose`, `lw_roll` and `lw_write` over the same documents."""
    made = tmp_path_factory.mktemp("tasks")
    data = made / "documents.jsonl"
    # Long texts take several windows.
    longer = {
        "context": "one two three four five six seven eight nine ten " * 8,
        "choices": ["a", "b"],
        "label": 0,
    }
    data.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (made / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*DOCUMENTS, longer]))
    for name, rest in KINDS.items():
        file = made / "long.jsonl" if name == "roll" else data
        text = "" if name == "roll" else "{{context}}\nAnswer:"
        (made / f"{name}.yaml").write_text(
            f"task: lw_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
            f'test_split: test\ndoc_to_text: "{text}"\n{rest}'.replace("\nAnswer", "\\nAnswer")
        )
    return made
