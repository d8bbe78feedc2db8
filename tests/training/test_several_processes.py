"""Several processes finetune as one does, stop together, and go on in any number."""

import json
import os
import signal
import time

import pytest

from latentwire import process_group
from latentwire.errors import UserError
from latentwire.lm.loading.lora import Lora
from latentwire.process_group import Group
from latentwire.training import loop
from latentwire.training.finetuning.checks import check
from latentwire.training.finetuning.finetuning_config import Finetuning
from latentwire.training.sharing import shares
from tests.support.processes import attempt, together
from tests.training.test_loop import SMALL, run, start, weights_of

STEPS = {"steps": 4, "eval_steps": 2, "train_samples": 8, "eval_samples": 3, "accumulation": 2}
ADAPTERS = {**STEPS, "lora": Lora(rank=2), "wire": "text", "generate_steps": 4, "generate_samples": 3}


def train(group, folder, changes=STEPS):
    done, said = run(folder, **changes)
    return done, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {name: (folder / name, run(folder / name, **of)[0]) for name, of in KINDS.items()}


KINDS = {"all weights": STEPS, "adapters": ADAPTERS}


def lines(folder):
    """What was logged, by (step, whether it is an evaluation)."""
    logged = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    return {(line["step"], "eval_loss" in line): line for line in logged}


def assert_alike(folder, whole):
    """Losses to 1e-5, weights to 1e-5: sums over the rows of a step are taken in another order.

    Adam divides a gradient by its own size. Where it is but rounding, its sign decides, and a weight may go
    elsewhere by what the learning rate allows: one in a thousand may.
    """
    ours, theirs = lines(folder), lines(whole)
    assert ours.keys() == theirs.keys()
    for key, line in ours.items():
        name = "eval_loss" if key[1] else "loss"
        assert line[name] == pytest.approx(theirs[key][name], rel=1e-5)
        assert line["tokens"] == theirs[key]["tokens"]
    for name in ("best", "final"):
        one, two = weights_of(whole, name), weights_of(folder, name)
        assert one.keys() == two.keys()
        for key, weight in one.items():
            apart = (two[key] - weight).abs()
            assert apart.max() < 1e-4
            assert (apart > 1e-5).float().mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("all weights", 3), ("adapters", 2)])
def test_losses_metrics_and_weights_are_those_of_one_process(tmp_path, alone, kind, count):
    """Three processes share two rows a step: one of them has nothing to do but to be there."""
    whole, expected = alone[kind]
    results = together(count, train, tmp_path / "run", KINDS[kind])
    assert_alike(tmp_path / "run", whole)
    for done, _ in results:
        assert done.train_rows_sha256 == expected.train_rows_sha256
        assert (done.steps, done.tokens, done.best_step) == (expected.steps, expected.tokens, expected.best_step)
        assert done.text == expected.text
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best", "final", "done.json"}


def struck(group, folder, number):
    """Trains until, after two steps, the second process gets a signal."""
    honest = loop.Training._train_step

    def step(self):
        if self.done == 3 and group.index == 1:
            os.kill(os.getpid(), number)
        honest(self)

    loop.Training._train_step = step
    return run(folder, **STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_sigterm_in_one_process_stops_all_with_a_snapshot_that_any_number_goes_on_from(tmp_path, alone, after):
    statuses, _ = attempt(2, struck, tmp_path / "run", signal.SIGTERM)
    assert statuses == [143, 143]
    said = run(tmp_path / "run", **STEPS)[1] if after == 1 else together(3, train, tmp_path / "run")[0][1]
    assert "resumed at step 3 of 4" in said
    assert_alike(tmp_path / "run", alone["all weights"][0])


@pytest.mark.slow
def test_a_killed_process_ends_the_others_within_seconds_and_the_last_snapshot_is_gone_on_from(tmp_path, alone):
    started = time.monotonic()
    statuses, _ = attempt(2, struck, tmp_path / "run", signal.SIGKILL)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] not in (0, -signal.SIGKILL), "the test's patience was not needed to end it"
    assert time.monotonic() - started < 60
    said = together(2, train, tmp_path / "run")[0][1]
    assert "resumed at step 2 of 4" in said
    assert_alike(tmp_path / "run", alone["all weights"][0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adafactor"}, "optimizer: found adafactor .* expected adamw"),
        ({"release_gradients": True}, "release_gradients: found true .* expected false"),
        ({"weights": "bfloat16", "precision": "bf16"}, "weights: found bfloat16 .* expected float32"),
        ({"objectives": [{"kind": "answer_ce"}, {"kind": "distill_hidden"}]}, "objectives: found distill_hidden"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_needs_whole_weights_or_gradients_is_refused_where_they_are_shared_out(monkeypatch, changes, said):
    monkeypatch.setattr(process_group, "current", lambda: Group(0, 2))
    with pytest.raises(UserError, match=said):
        check(Finetuning(**{**SMALL, **changes}), start())
    if "weights" not in changes and "release_gradients" not in changes:
        check(Finetuning(**{**SMALL, **changes, "lora": Lora(rank=2)}), start())


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_process_makes_equally_many_passes_and_each_row_is_read_once(count, processes, passes):
    all_shares = [shares(range(count), process, processes, passes) for process in range(processes)]
    assert len({len(parts) for parts in all_shares}) == 1
    assert sorted(row for parts in all_shares for part in parts for row in part) == list(range(count))
