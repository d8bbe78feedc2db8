"""A training with compiled layers is the training without, and what cannot be compiled is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm import compiling
from latentwire.lm.loading.lora import Lora
from latentwire.training import step_passes
from latentwire.training.objectives import AnswerCrossEntropy, Distill, DistillHidden
from latentwire.training.training_step import Losses
from latentwire.training.wire import train
from tests.support.wire_training import KEYS, SOFT, lines_of, run, settings, start, weights_of


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    # Layers are traced and cut as for every compiler, and then run by PyTorch: seconds instead of minutes.
    monkeypatch.setattr(compiling, "BACKEND", "eager")


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 2},
        {"precision": "bf16", "activation_checkpointing": True},
        {"adapter": SOFT, "objectives": (AnswerCrossEntropy(), DistillHidden(), Distill())},
        {"reader_lora": Lora(rank=2)},
    ],
    ids=["keys", "checkpointing", "embeddings and taps", "a reader with adapters"],
)
def test_it_learns_the_same_with_compiled_layers(changes: dict[str, Any], tmp_path: Path) -> None:
    plain, traced = tmp_path / "plain", tmp_path / "compiled"
    for folder, compiles in ((plain, False), (traced, True)):
        run(folder, steps=2, eval_steps=2, compile=compiles, **changes)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert [line["loss"] for line in lines_of(traced) if "loss" in line] == pytest.approx(
        [line["loss"] for line in lines_of(plain) if "loss" in line], rel=1e-6
    )
    ours, theirs = weights_of(traced), weights_of(plain)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-5)


def test_layers_are_compiled_in_a_few_pieces_and_only_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def spy(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", spy)
    _, lm, _ = run(tmp_path, steps=1, eval_steps=1, compile=True)
    assert 0 < len(graphs) < 40  # however many layers there are
    assert not lm.compiles
    assert not any("forward" in vars(layer) for layer in lm.model.get_decoder().layers)


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("hf_device_map", {"model.layers.0": 0, "model.layers.1": 1}, "on several devices"),
        ("is_quantized", True, "with quantized weights"),
        ("", None, "no working compiler"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    attribute: str, value: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = start()
    if attribute:
        setattr(lm.model, attribute, value)
    else:
        monkeypatch.setattr(compiling, "BACKEND", "none_such")
    with pytest.raises(UserError, match=expected) as refused:
        train.check({lm.name: lm}, lm, settings(lm, KEYS, compile=True))
    assert "\n" not in str(refused.value)


def test_a_training_without_it_is_still_the_same_run() -> None:
    lm = start()
    assert "compile" not in settings(lm).model_dump()
    assert settings(lm, compile=True).model_dump()["compile"] is True


def test_gradients_of_single_terms_are_taken_of_passes_that_are_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilers free what a graph keeps in its first backward pass, so that a second one would fail."""
    made: list[bool] = []
    real = step_passes.gradient_norms

    def norms(losses: Losses) -> dict[str, float]:
        compiled = any("CompiledFunction" in name for name in graph_of(losses.total))
        made.append(compiled)
        return real(losses)

    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    monkeypatch.setattr(step_passes, "gradient_norms", norms)
    run(tmp_path, steps=2, eval_steps=2, log_steps=1, compile=True)
    assert made == [False, False]


def graph_of(tensor: torch.Tensor) -> set[str]:
    """Names of all nodes that the gradient of a tensor goes through."""
    names, waiting, known = set(), [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        names.add(type(node).__name__)
        waiting += [after for after, _ in node.next_functions]
    return names
