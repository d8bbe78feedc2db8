"""Stages of a wire: readers that learn along with it, and one reader more for a finished one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.errors import UserError
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.outcomes import read_outcomes
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.studies.spec import Study
from latentwire.tasks import resolve
from latentwire.wires import parse
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import WEIGHTS
from latentwire.wires.latent.trained_readers import FILE
from tests.support.studies import written
from tests.support.wire_studies import HERON, SOFT, WREN, A

B = {
    **A,
    "start_from": "A",
    "reader_lora": {"rank": 2},
    "reader_prefix": 2,
    "learning_rate": 0.03,
    "steps": 6,
    # The last weights: those that have moved furthest from a reader that has learned nothing.
    "eval_steps": 6,
}
C = {
    **A,
    "start_from": "B",
    "wire": {**A["wire"], "adapters": {HERON: SOFT, WREN: SOFT}},
    "new_reader": WREN,
    "steps": 12,
    "eval_steps": 3,
    "learning_rate": 0.02,
}
STUDY: dict[str, Any] = {
    "name": "stages",
    "model": HERON,
    "tasks": ["one_hop"],
    "limit": 6,
    "stages": {
        "A": A,
        "B": B,
        "C": C,
        "before": {"kind": "evaluate", "arms": {"text": "text"}},
        "read": {
            "kind": "evaluate",
            "arms": {"a": "stage:A", "b": "stage:B", "text": "text"},
        },
        "new": {"kind": "evaluate", "model": WREN, "arms": {"c": "stage:C"}},
    },
}


def made(**changes: Any) -> Study:
    return Study.model_validate(loading._with_shared({**STUDY, **changes}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> runner.Carried:
    return runner.run(made(), tmp_path_factory.mktemp("runs"), Log())


def best(carried: runner.Carried, stage: str) -> Path:
    return carried.runs[stage].folder / "checkpoints" / "best"


def outcomes(carried: runner.Carried, stage: str, arm: str) -> list[Any]:
    found = read_outcomes(carried.runs[stage].folder / "outcomes.jsonl")
    return [(each.id, each.prediction, each.metrics) for each in found if each.arm == arm]


@pytest.mark.slow
def test_a_reader_that_has_learned_reads_over_its_wire_and_over_no_other(done: runner.Carried) -> None:
    assert outcomes(done, "read", "text") == outcomes(done, "before", "text")
    nll = {arm: [m["nll"] for _, _, m in outcomes(done, "read", arm)] for arm in ("a", "b")}
    assert all(abs(a - b) > 1e-4 for a, b in zip(nll["a"], nll["b"], strict=True))


def test_a_loaded_wire_answers_again_as_it_did_and_leaves_the_reader_bit_for_bit(done: runner.Carried) -> None:
    lm, tasks = LM.load(HERON), resolve(["one_hop"], None)
    prefix = Prefix.of_tokens([[5, 6, 7, 8]])
    before = lm.prefill(prefix).logits
    bound = Latent(path=str(best(done, "B"))).bind(lm)
    again = evaluate(lm, tasks, [bound, parse("text")], limit=6).outcomes
    said = [(each.id, each.prediction, each.metrics) for each in again]
    assert said == outcomes(done, "read", "b") + outcomes(done, "read", "text")
    assert torch.equal(lm.prefill(prefix).logits, before)
    assert not torch.allclose(bound.reader(lm).prefill(prefix).logits, before, atol=1e-3)
    assert bound.reader(lm).max_positions == lm.max_positions - 2


def test_a_reader_in_bfloat16_reads_with_what_it_has_learned(done: runner.Carried) -> None:
    lm = LM.load(HERON, dtype=torch.bfloat16)
    found = evaluate(lm, resolve(["one_hop"], None), [Latent(path=str(best(done, "B")))], limit=4).outcomes
    whole = [metrics["nll"] for _, _, metrics in outcomes(done, "read", "b")]
    assert [each.metrics["nll"] for each in found] == pytest.approx(whole[:4], rel=0.05)


def test_a_piece_of_the_reader_that_is_gone_is_an_error(done: runner.Carried, tmp_path: Path) -> None:
    lm, folder = LM.load(HERON), tmp_path / "wire"
    shutil.copytree(best(done, "B"), folder)
    whole = load_file(folder / WEIGHTS)
    piece = next(name for name in whole if name.startswith("readers."))
    save_file({name: each for name, each in whole.items() if name != piece}, folder / WEIGHTS)
    with pytest.raises(UserError, match="lacks readers"):
        Latent(path=str(folder)).bind(lm)
    save_file(whole, folder / WEIGHTS)
    (folder / FILE).unlink()
    with pytest.raises(UserError, match="holds readers"):
        Latent(path=str(folder)).bind(lm)


def test_a_new_reader_learns_and_every_old_piece_stays_bit_for_bit(done: runner.Carried) -> None:
    old, new = load_file(best(done, "B") / WEIGHTS), load_file(best(done, "C") / WEIGHTS)
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert {name.split(".")[0] for name in new.keys() - old.keys()} == {"adapters"}
    lines = [json.loads(each) for each in (done.runs["C"].folder / "diagnostics.jsonl").open()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(losses[1:]) < losses[0] - 0.05
    # The old reader has kept what it had learned; the new one has nothing but its adapter.
    lm, wren = LM.load(HERON), LM.load(WREN)
    for stage in ("B", "C"):
        bound = Latent(path=str(best(done, stage))).bind(lm)
        found = evaluate(lm, resolve(["one_hop"], None), [bound], limit=6).outcomes
        assert [(each.id, each.prediction, each.metrics) for each in found] == outcomes(done, "read", "b")
    assert Latent(path=str(best(done, "C"))).bind(wren).reader(wren) is wren


@pytest.mark.slow
def test_a_wire_from_elsewhere_gets_a_reader_too(done: runner.Carried, tmp_path: Path) -> None:
    elsewhere = {**C, "start_from": None, "start_wire": str(done.runs["A"].folder), "steps": 1, "eval_steps": 1}
    carried = runner.run(made(stages={"C": elsewhere}), tmp_path, Log())
    old, new = load_file(best(done, "A") / WEIGHTS), load_file(best(carried, "C") / WEIGHTS)
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert [name for name in carried.runs["C"].record.inputs if name.startswith("wire ")]
    # What the old wire leaves to its layout may be written out.
    written = {**elsewhere, "wire": {**C["wire"], "positions": "spread"}}
    assert runner.run(made(stages={"C": written}), tmp_path / "written", Log()).runs["C"].status == "done"
    other = {**elsewhere, "wire": {**C["wire"], "positions": "contiguous"}}
    with pytest.raises(UserError, match=r"stages\.C: wire\.positions: found contiguous, expected None as in"):
        runner.run(made(stages={"C": other}), tmp_path / "other", Log())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_from": None}, "found no wire to add it to"),
        ({"new_reader": "embedded:wren"}, "expected a reader with an adapter"),
        ({"new_reader": HERON}, "expected one that B has not"),
        ({"reader_prefix": 2}, "learns its adapter alone"),
        ({"wire": {**C["wire"], "positions": "contiguous"}}, "found another wire than that of B"),
        ({"start_wire": "."}, "both start_from and start_wire"),
        ({"accept": ["f1"]}, "expected METRIC >= NUMBER"),
        ({"preset": "large"}, "expected 'smoke' or 'hero'"),
    ],
)
def test_what_cannot_be_a_stage_is_told_in_one_sentence(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, {**STUDY, "stages": {**STUDY["stages"], "C": {**C, **changes}}})
    with pytest.raises(UserError, match=expected):
        loading.load(str(path))
