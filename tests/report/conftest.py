from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.report_studies import report_study


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three studies: `demo`, `second` (the same examples, other answers) and `third` (other texts)."""
    root = tmp_path_factory.mktemp("studies")
    return {
        "demo": report_study(root),
        "second": report_study(root, "second", seed=1),
        "third": report_study(root, "third", words=" More words."),
    }
