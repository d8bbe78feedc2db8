"""Before anything is imported: no network, and one thread, which is fastest for tiny models on shared cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import inspect
from collections import Counter

import pytest
import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()


def pytest_collection_modifyitems(items):
    """Files with many slow tests come first, so that no worker is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What is imported stays: the package collects garbage after every model, which else looks at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_contexts_are_timed():
    """What an arm costs is measured on two contexts, and not on 20: no test asserts a time."""
    from latentwire.evaluation import costs

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(inspect.unwrap(costs.measure).__kwdefaults__, "repeats", 2)
        yield
