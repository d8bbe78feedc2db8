"""An evaluation shared out among processes gives the outcomes of one process.

Scores in nats are equal to rounding: on some processors the last bit of a sum depends on the rest of its batch.
"""

import json

import pytest

from latentwire.evaluation.arms import parse
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.several_readers import evaluate_readers
from latentwire.process_group import ALONE
from latentwire.tasks import resolve
from tests.support.models import tiny_lm
from tests.support.processes import together

ARMS = ("text", "text,mask=prefix", "none", "nth,ratio=4", "nth,ratio=4:deranged")
EXAMPLES = 6


def answered(group):
    """Small batches, so that there are several for each process."""
    lm, other = (tiny_lm(seed=seed, max_position_embeddings=2048) for seed in (0, 1))
    tasks = [task for name in ("one_hop", "choices/home") for task in resolve([name], None)]
    seen = []
    options = {"limit": EXAMPLES, "group": group, "progress": lambda arm, task, count: seen.append(count)}
    found = evaluate(lm, tasks, [parse(arm) for arm in ARMS], batch_tokens=700, **options)
    readers = {None: lm, "other": other}
    both = evaluate_readers(readers, tasks, [parse("text"), parse("text@other")], **options)
    outcomes = [outcome.to_json() for outcome in (*found.outcomes, *both.outcomes)]
    return outcomes, found.floors, found.unstable, found.skipped, found.partners, sum(seen)


def test_two_and_three_processes_give_the_outcomes_of_one():
    expected = answered(ALONE)
    assert len(expected[0]) == 2 * EXAMPLES * (len(ARMS) + 4), (
        "two readers add their joint answer and their oracle"
    )
    for count in (2, 3):
        for outcomes, *rest in together(count, answered):
            assert rest == list(expected[1:])
            assert len(outcomes) == len(expected[0])
            for line, wanted in zip(map(json.loads, outcomes), map(json.loads, expected[0]), strict=True):
                assert line.pop("metrics") == pytest.approx(wanted.pop("metrics"), rel=1e-6)
                assert line == wanted
