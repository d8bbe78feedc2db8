from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from tests.support.hub import Hub, serving
from tests.support.studies import MASKED, small_study, written
from tests.support.wire_studies import STUDY


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process may talk to."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serving() as server:
        yield server


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def _carried(folder: Path, study: dict[str, Any]) -> Path:
    runner.run(loading.load(str(written(folder, study))), folder / "runs", Log())
    return folder / "runs"


@pytest.fixture(scope="session")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of a study that trains a wire and evaluates it."""
    stages = {
        **STUDY["stages"],
        "latent": {"kind": "evaluate", "arms": {"ours": "stage:fit", "zero": "stage:fit:zero"}},
    }
    study = {"name": "wired", "model": STUDY["model"], "tasks": ["one_hop"], "limit": 8, "stages": stages}
    return _carried(tmp_path_factory.mktemp("wired"), study)


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of a study that finetunes and evaluates what came of it."""
    small = small_study()
    stages = {
        "ft": {"kind": "finetune", "wire": "text,mask=prefix"},
        "after": {"kind": "evaluate", "start_from": "ft", "arms": MASKED},
    }
    kept = {key: small[key] for key in ("model", "finetuning")}
    study = {"name": "small", **kept, "tasks": ["one_hop", "choices/home"], "limit": 6, "stages": stages}
    return _carried(tmp_path_factory.mktemp("finetuned"), study)


@pytest.fixture
def copied(finetuned: Path, tmp_path: Path) -> Path:
    """The same runs, to be changed."""
    return Path(shutil.copytree(finetuned, tmp_path / "runs"))
