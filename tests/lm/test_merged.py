"""Merged products say what the layers say, on the layers' own memory, and leave the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from latentwire.lm.decoding import Decoding
from latentwire.lm.decoding.decode_step import advance
from latentwire.lm.decoding.merged import applied, merge
from latentwire.lm.decoding.slots import Slots
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.lm.test_slots import Replayed, slowly
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm, tiny_model

ROWS = [numbers(length, seed) for seed, length in enumerate([9, 5, 12])]
HOW = Decoding(max_new_tokens=20, min_new_tokens=20)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.lm.decoding.engine.unfit", lambda model: None)


def merging_lm(family: str, **changes: Any) -> LM:
    lm = tiny_lm(family, **changes)
    lm.engine = Replayed(lm, "graph")
    lm.engine.merging = "all"
    return lm


def said(lm: LM) -> list[tuple[int, ...]]:
    return [text.ids for text in lm.generate(lm.prefill(Prefix.of_tokens(ROWS)), HOW)]


def nbytes(model: nn.Module) -> int:
    storages = [parameter.untyped_storage() for parameter in model.parameters()]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}], ids=["plain", "with biases"])
@pytest.mark.parametrize("family", [*FAMILIES, "llama_tied", "phi3", "smollm3"])
def test_merged_products_say_what_plain_decoding_says(family: str, changes: dict[str, Any]) -> None:
    expected, lm = said(tiny_lm(family, **changes)), merging_lm(family, **changes)
    assert said(lm) == expected
    assert len(lm.engine._merged) == {"gpt_neox": 0, "phi3": 0}.get(family, 6)
    for row, ids in zip(ROWS, expected, strict=True):
        theirs = lm.model.generate(torch.tensor([row]), do_sample=False, min_new_tokens=20, max_new_tokens=20)
        assert theirs[0, len(row) :].tolist() == list(ids)


def test_weights_are_held_once_and_given_back() -> None:
    lm = merging_lm("qwen3", attention_bias=True)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    modules, size = dict(lm.model.named_modules()), nbytes(lm.model)
    places = len({parameter.untyped_storage().data_ptr() for parameter in lm.model.parameters()})
    said(lm)
    assert lm.engine._merged
    assert nbytes(lm.model) == size
    assert len({parameter.untyped_storage().data_ptr() for parameter in lm.model.parameters()}) < places
    assert dict(lm.model.named_modules()) == modules  # in their places, but within a step
    lm.engine.release()
    assert nbytes(lm.model) == size
    assert len({parameter.untyped_storage().data_ptr() for parameter in lm.model.parameters()}) == places
    assert dict(lm.model.named_modules()) == modules
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_changed_weights_are_read_and_replaced_ones_merged_anew() -> None:
    lm = merging_lm("llama")
    before = said(lm)
    weight = lm.model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.neg_()
    changed = said(lm)
    assert changed != before
    assert lm.engine.captures == 1
    other = tiny_lm("llama")
    other.model.load_state_dict(lm.model.state_dict())
    assert said(other) == changed
    weight.data = -weight.data
    assert said(lm) == before
    assert lm.engine.captures == 2
    lm.engine.release()
    assert torch.equal(weight, tiny_model("llama").model.layers[0].mlp.up_proj.weight)


def test_a_merged_model_trains_and_is_saved_as_any_other(tmp_path: Path) -> None:
    lm = merging_lm("llama")
    said(lm)
    ids = torch.tensor([ROWS[0]])
    lm.model(input_ids=ids, labels=ids).loss.backward()
    plain = tiny_model("llama")
    plain(input_ids=ids, labels=ids).loss.backward()
    for ours, theirs in zip(lm.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad)
    lm.save(tmp_path / "saved")
    for name, tensor in LM.load(tmp_path / "saved", device="cpu").model.state_dict().items():
        assert torch.equal(tensor, lm.model.state_dict()[name])


class Packed(nn.Linear):
    """As a quantized layer would be: a linear layer whose product is not that of its weight."""


def _adapted(model: Any) -> None:
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


def _tied(model: Any) -> None:
    first, second = model.model.layers[:2]
    second.self_attn.k_proj.weight = first.self_attn.k_proj.weight
    second.mlp.gate_proj = first.mlp.gate_proj


def _quantized(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.v_proj = Packed(32, 16, bias=False)
        layer.mlp.gate_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)


def _hooked(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda *_: None)
        layer.mlp.up_proj.forward = lambda given: given


@pytest.mark.parametrize(
    ("change", "left"), [(_adapted, 0), (_tied, 2), (_quantized, 0), (_hooked, 0), (lambda model: None, 6)]
)
def test_what_is_no_plain_layer_of_its_own_stays_as_it_is(change: Any, left: int) -> None:
    model = tiny_model("llama")
    change(model)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert len(merge(model, "none")) == 0
    assert len(merge(model, "all")) == left
    if not left:
        assert before == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def test_layers_that_are_given_other_inputs_are_products_of_their_own() -> None:
    model = tiny_model("llama")
    attention = model.model.layers[0].self_attn
    first, second = torch.randn(2, 3, 32)
    names = ("q_proj", "k_proj", "v_proj")
    expected = [[getattr(attention, name)(x) for x in (first, second)] for name in names]
    with applied(merge(model, "attention")):
        # In another order, with another input between, and one of them twice.
        found = {(n, i): getattr(attention, names[n])((first, second)[i])
                 for n, i in ((2, 0), (0, 0), (0, 1), (1, 1), (0, 0), (1, 0), (2, 1))}  # fmt: skip
    for (n, i), output in found.items():
        assert torch.allclose(output, expected[n][i], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_a_merged_step_compiles_whole_and_once(family: str) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(advance, fullgraph=True, dynamic=False, backend=count)
    lm = tiny_lm(family)
    eos = torch.tensor(sorted(lm.eos_ids))
    prefilled = lm.prefill(Prefix.of_tokens(ROWS[:2]))
    expected = slowly(lm, prefilled, 7)
    for _ in range(2):  # the second time merged anew, as after a release
        groups = merge(lm.model, "all")
        slots = Slots(prefilled, 2, 32)
        first = prefilled.logits.index_fill(1, eos, -torch.inf).argmax(-1)
        slots.admit(prefilled, [0, 1], [0, 1], first, room=[6, 6], held=[9, 9])
        with torch.no_grad(), applied(groups):
            for _ in range(6):
                compiled(lm.states, lm.head, slots, 32, eos)
        assert slots.history[:, :6].tolist() == [row[1:] for row in expected]
        for group in groups:
            group.undo()
    assert len(graphs) == 1
    products = [node for node in graphs[0].graph.nodes if node.target is nn.functional.linear]
    assert len(products) == 3 * 4 + 1  # a layer's four, and the head
