"""All causal families of Transformers: each is read right, or refused on loading with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.support import families


@pytest.mark.sweep
@pytest.mark.parametrize("name", families.NAMES)
def test_a_family_is_read_right_or_refused_on_loading(name: str, tmp_path: Path) -> None:
    found = families.look(name, tmp_path / "model")
    assert found.state != "wrong", found.because
    if f"Transformers {transformers.__version__} " in families.PAGE.read_text():
        assert families.listed().get(name) == found.state, f"{found}; python -m tests.support.families"


def test_the_page_of_models_lists_families_of_both_kinds() -> None:
    listed = families.listed()
    assert {"llama", "qwen3", "mistral", "gemma2", "gemma3_text", "granite", "cohere"} <= {
        name for name, state in listed.items() if state == "read"
    }
    assert "refused" in listed.values()
    assert "wrong" not in listed.values()
