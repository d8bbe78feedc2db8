"""Training a wire keeps frozen weights once; a step that does not fit runs otherwise, to the same gradient."""

import gc

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.training.objectives import AnswerCrossEntropy, Contrast, Distill
from latentwire.training.wire import memory
from latentwire.training.wire.wire_step import WireStep
from tests.support.models import tiny_model, tiny_tokenizer
from tests.support.wire_training import KEYS, SOFT, lines_of, one_step, run, weights_of

OBJECTIVES = (AnswerCrossEntropy(weight=0.5), Distill())


def gradients(modules, losses):
    modules.zero_grad()
    (losses.total / losses.labels).backward()
    return {name: each.grad.clone() for name, each in modules.trained().items() if each.grad is not None}


def recompute(modules, step, recomputes):
    modules.recompute(recomputes)
    for lm in step._readers.values():
        lm.recomputes = recomputes


def reader(dtype):
    model = tiny_model("llama", max_position_embeddings=2048).to(dtype).requires_grad_(False)
    return LM(model, tiny_tokenizer(), name="llama")


@pytest.mark.parametrize("adapter", [None, SOFT], ids=["keys", "soft"])
def test_gradients_are_the_same_when_layers_run_again_in_the_backward_pass(adapter):
    options = {} if adapter is None else {"adapter": adapter}
    modules, step, part = one_step(objectives=OBJECTIVES, **options)
    plain = gradients(modules, step(part))
    recompute(modules, step, True)
    again = gradients(modules, step(part))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-7)


def test_layers_that_run_again_keep_less_than_half():
    modules, step, part = one_step(objectives=OBJECTIVES)
    weights = [*modules.parameters(), *next(iter(step._readers.values())).model.parameters()]
    kept = {}
    for recomputes in (False, True):
        recompute(modules, step, recomputes)
        kept[recomputes] = memory.saved_bytes(lambda: step(part), weights).total()
    assert kept[True] < kept[False] / 2


def copies_of_weights(lm, modules, step, part):
    """Tensors kept for the backward pass that equal a frozen matrix without being it."""
    known = {each.untyped_storage().data_ptr() for each in lm.model.parameters()}
    matrices = [each.detach().bfloat16() for each in lm.model.parameters() if each.ndim == 2]
    copies = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in known and tensor.ndim == 2:
            values = tensor.detach().bfloat16()
            copies.extend(m for m in matrices for v in (values, values.T) if v.shape == m.shape and v.equal(m))
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        step(part)
    return copies


def test_no_frozen_weight_is_kept_twice_in_bf16_training():
    lm = reader(torch.bfloat16)
    assert copies_of_weights(lm, *one_step(objectives=OBJECTIVES, lm=lm)) == []
    # What it was like with frozen weights in float32: the check can fail.
    lm = reader(torch.float32)
    assert copies_of_weights(lm, *one_step(objectives=OBJECTIVES, lm=lm)) != []


@pytest.mark.slow
def test_a_step_in_parts_has_the_gradient_of_the_whole_step(tmp_path):
    whole, _, _ = run(tmp_path / "whole", steps=2, objectives=OBJECTIVES)
    parts, _, _ = run(tmp_path / "parts", steps=2, objectives=OBJECTIVES, accumulation=4)
    assert whole.steps == parts.steps == 2
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [KEYS, SOFT], ids=["keys", "soft"])
def test_a_context_is_contrasted_with_the_same_other_one_however_a_step_is_split(tmp_path, adapter):
    changes = {"steps": 2, "adapter": adapter, "objectives": (Contrast(margin=9.0),), "keep_prob": {"start": 0.7}}
    run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", **changes, accumulation=4)  # one passage each: alone it has no other one
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-5)
    lines = [[line["loss"] for line in lines_of(tmp_path / n) if "loss" in line] for n in ("whole", "parts")]
    assert lines[0] == pytest.approx(lines[1], rel=1e-5)


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_is_split_and_ends_in_the_same_weights(tmp_path, monkeypatch):
    run(tmp_path / "whole", steps=2, objectives=OBJECTIVES)
    forward = WireStep.forward

    def small(self, part, share=0.0):
        if self.training_steps and len(part.contexts) > 1:
            raise torch.OutOfMemoryError
        return forward(self, part, share)

    monkeypatch.setattr(WireStep, "training_steps", False, raising=False)
    monkeypatch.setattr(WireStep, "forward", small)
    monkeypatch.setattr(memory, "choose", lambda *_: (setattr(WireStep, "training_steps", True), PLAN)[1])
    _, _, said = run(tmp_path / "split", steps=2, objectives=OBJECTIVES)
    assert sum("out of memory in step 0: steps are split" in line for line in said) == 2
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "split")
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-5)


PLAN = memory.StepPlan(recomputes=False, passes=1, activations=0)


@pytest.mark.parametrize(
    ("asked", "budget", "recomputes", "passes"),
    [
        (None, 100, False, 1),
        (None, 99, True, 1),
        (None, 9, True, 2),
        (True, 100, True, 1),
        (False, 60, False, 2),
        (False, 30, False, 4),
    ],
)
def test_a_step_runs_in_the_fastest_way_that_fits(asked, budget, recomputes, passes):
    choice = memory.choose(100, 10, asked, budget, 1, 8)
    assert (choice.recomputes, choice.passes) == (recomputes, passes)
    assert choice.activations <= budget


@pytest.mark.parametrize(
    ("asked", "part"), [(False, "activation_checkpointing: true, shorter"), (None, "; shorter")]
)
def test_a_passage_that_does_not_fit_alone_is_refused_with_what_would_fit(asked, part):
    with pytest.raises(UserError, match=part):
        memory.choose(100, 60, asked, 5, 1, 8)


@pytest.mark.parametrize("most", [0, 1], ids=["at all", "two passages at once"])
def test_what_does_not_fit_while_it_is_counted_is_run_otherwise(tmp_path, monkeypatch, most):
    """8 and 7 billion parameters under 40 GiB: two passages ran out of memory before anything was decided."""
    kept = WireStep.kept

    def small(self, part):
        if len(part.contexts) > most and not any(lm.recomputes for lm in self._readers.values()):
            raise torch.OutOfMemoryError
        return kept(self, part)

    monkeypatch.setattr(WireStep, "kept", small)
    _, _, said = run(tmp_path, steps=1, objectives=OBJECTIVES)
    assert any("layers run again in the backward pass" in line for line in said) == (most == 0)


def test_a_passage_that_ran_out_of_memory_is_refused_without_a_size():
    with pytest.raises(UserError, match="expected more for a single passage; activation_checkpointing: true"):
        memory.choose(memory.TOO_MUCH, 10, False, 5, 1, 8)


CPU, OTHER = torch.device("cpu"), torch.device("meta")
"""Two devices. Nothing can be computed on the second one, but sizes can be counted there."""


def test_what_is_trained_on_a_device_must_fit_on_that_device():
    trained = [torch.nn.Parameter(torch.zeros(10, device=device)) for device in (CPU, OTHER, OTHER)]
    needs = memory.static([], trained, "adamw")
    assert (needs.gradients, needs.fixed(CPU), needs.fixed(OTHER)) == (120, 120, 240)
    memory.check_static(needs, {CPU: 140, OTHER: 270})
    with pytest.raises(UserError, match=r"memory: found 0\.00 GiB free on meta beside the weights"):
        memory.check_static(needs, {CPU: 2**30, OTHER: 200})  # on both together it would fit


def test_activations_are_counted_on_the_device_that_keeps_them():
    weights = [torch.nn.Parameter(torch.zeros(4, device=device)) for device in (CPU, OTHER)]
    rows = [torch.ones(size, 4, device=weight.device) for size, weight in zip((2, 3), weights, strict=True)]
    kept = memory.saved_bytes(lambda: [row * weight for row, weight in zip(rows, weights, strict=True)], weights)
    assert kept == {CPU: 2 * 4 * 4, OTHER: 3 * 4 * 4}


@pytest.mark.parametrize(
    ("free", "recomputes", "passes"),
    [
        ({CPU: 1000, OTHER: 1000}, False, 1),
        ({CPU: 1000, OTHER: 30}, True, 1),  # one device alone decides how all run
        ({CPU: 30, OTHER: 20}, True, 2),
    ],
)
def test_a_step_is_planned_for_the_device_with_the_least_room(free, recomputes, passes):
    needs = memory.static([], [], "adamw")
    kept = {False: {CPU: 100, OTHER: 100}, True: {CPU: 20, OTHER: 20}}
    plan = memory.plan(kept, needs, free, None, 1, 8)
    assert (plan.recomputes, plan.passes) == (recomputes, passes)
    assert plan.activations == sum(kept[recomputes].values()) // passes
    with pytest.raises(UserError, match="GiB free on meta for activations"):
        memory.plan(kept, needs, {CPU: 1000, OTHER: 1}, None, 1, 8)


def test_what_cannot_fit_whatever_the_step_is_refused_before_the_first_one(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_disk", lambda folder: 0)
    with pytest.raises(UserError, match=r"disk: found 0\.00 GiB free, expected .* for checkpoints"):
        run(tmp_path / "disk")
    monkeypatch.setattr(memory, "free_disk", lambda folder: 2**40)
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    with pytest.raises(UserError, match=r"memory: found 0\.00 GiB free .* adafactor"):
        run(tmp_path / "memory")


def test_needs_are_logged_beside_what_there_is(tmp_path):
    _, lm, said = run(tmp_path / "run", steps=1)
    (line,) = [line for line in said if line.startswith("memory:")]
    for part in ("weights", "gradients", "optimizer", "activations", "GiB free"):
        assert part in line
    assert any(line.startswith("disk: checkpoints") for line in said)
    trained = [torch.nn.Parameter(torch.zeros(10))]
    needs = memory.static([lm.model, lm.model], trained, "adamw")
    assert needs.weights == sum(each.numel() * 4 for each in lm.model.parameters()) + sum(
        each.numel() * each.element_size() for each in lm.model.buffers()
    )
    assert (needs.gradients, needs.optimizer, needs.checkpoints) == (40, 80, 2 * 120 + 80)


def bytes_alive():
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        # Tensors inside `vmap`, which other tests may leave behind, have no storage.
        if type(each) in (torch.Tensor, torch.nn.Parameter) and not torch._C._functorch.is_batchedtensor(each):
            storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("at", [1, 2], ids=["encoder", "reader"])
def test_a_pass_that_ran_out_of_memory_leaves_nothing_behind(monkeypatch, at):
    """Else each attempt in smaller parts has less memory than the one before it."""
    modules, step, part = one_step(objectives=(AnswerCrossEntropy(),))
    recompute(modules, step, True)
    (lm,) = step._readers.values()
    last = (
        lm.model.get_decoder().layers[-1].mlp
        if at == 2
        else modules.encoder._lm.model.get_decoder().layers[-1].mlp
    )
    honest = last.forward

    def ends(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    gradients(modules, step(part))
    modules.zero_grad()
    before = bytes_alive()
    monkeypatch.setattr(last, "forward", ends)
    with pytest.raises(torch.OutOfMemoryError):
        step(part)
    monkeypatch.setattr(last, "forward", honest)
    assert bytes_alive() == before
