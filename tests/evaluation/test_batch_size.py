"""How much an evaluation reads at once."""

import pytest

from latentwire.evaluation import batch_size
from latentwire.evaluation.batch_size import BATCHES, MOST, column_bytes, fitting
from latentwire.evaluation.encoded import prepare, total_columns
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts
from latentwire.lm.scoring.shared_scorer import BATCH_TOKENS
from latentwire.tasks import resolve

GIB = 2**30


@pytest.fixture(scope="module")
def lm():
    return LM.load("embedded:heron")


def test_a_cpu_reads_as_much_as_ever(lm):
    (task,) = resolve(["one_hop"], None)
    assert batch_size.batch_tokens(lm, prepare(lm, task, "test", 5)) == BATCH_TOKENS


@pytest.mark.parametrize(
    ("columns", "each", "memory", "expected"),
    [
        (10**7, 1.0, 80 * GIB, MOST),
        (300_000, 1.0, 80 * GIB, 300_000 // BATCHES),  # enough batches to share out among processes
        (10**7, 1.0e6, 80 * GIB, int(10 * GIB / 1e6)),  # an eighth of the memory
        (10**7, 1.0e7, 24 * GIB, BATCH_TOKENS),
    ],
)
def test_an_accelerator_reads_what_its_memory_and_the_number_of_examples_suggest(columns, each, memory, expected):
    assert fitting(columns, each, memory) == expected


def test_a_columns_bytes_are_its_keys_activations_and_logits():
    counts = Counts(body=0, head=0, heads=0, column=6144, kept=40_000)
    assert column_bytes(counts, 150_000, 2) == 2 * (3 * 6144 + 20_000) + 150_000


def test_all_columns_of_examples_are_counted(lm):
    (task,) = resolve(["one_hop"], None)
    items = prepare(lm, task, "test", 3)
    assert total_columns(items) == sum(item.prompt.tokens + sum(map(len, item.answers)) for item in items)
