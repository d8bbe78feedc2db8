"""A training may begin with what another one left: all of it, or what it has in common with the new one."""

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.loading.lora import Lora
from latentwire.training.wire.train import train_wire
from latentwire.wires.latent.adapters import DeepPrefixConfig
from latentwire.wires.latent.modules import key_of
from tests.support.wire_training import KEYS, SOFT, STAGE_B, config, lines_of, run, settings, start, weights_of


@pytest.mark.slow
def test_stage_b_starts_from_stage_a_at_its_first_step(tmp_path):
    run(tmp_path / "a")
    a = tmp_path / "a" / "checkpoints" / "final"
    found, _, said = run(tmp_path / "b", begin=a, steps=2, learning_rate=1e-9, **STAGE_B)
    assert found.steps == 2
    assert not any("resumed" in line for line in said)
    first, after = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in first.items())
    run(tmp_path / "b2", begin=tmp_path / "b" / "checkpoints" / "final", steps=1, learning_rate=1e-9, **STAGE_B)
    assert weights_of(tmp_path / "b2").keys() == after.keys()
    with pytest.raises(UserError, match=r"start: .* expected the same reader_lora"):
        run(tmp_path / "c", begin=tmp_path / "b" / "checkpoints" / "final")


@pytest.mark.slow
def test_stage_b_begins_as_good_as_stage_a_ended(tmp_path):
    """Low-rank adapters begin as nothing: the first evaluation of B is the best one of A."""
    found, _, _ = run(tmp_path / "a")
    run(tmp_path / "b", begin=tmp_path / "a" / "checkpoints" / "best", steps=1, reader_lora=Lora(rank=2))
    first = next(line for line in lines_of(tmp_path / "b") if "eval_loss" in line)
    assert first["eval_loss"] == pytest.approx(found.best_loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("learned", [{}, {"reader_lora": Lora(rank=2)}])
def test_a_wire_to_start_from_gets_readers_beside_those_it_has(learned, tmp_path):
    """Unlike a `new_reader`, all of it learns on: the encoder learns for both."""
    run(tmp_path / "a", **learned)
    first, second = start(), start("qwen3", hidden_size=24, num_hidden_layers=2, seed=1)
    readers = {first.name: first, "qwen3": second}
    wire = config(first).model_copy(update={"adapters": {first.name: KEYS, "qwen3": SOFT}})
    alone = weights_of(tmp_path / "a")
    for name, rate in (("still", 1e-9), ("moved", 1e-2)):
        (tmp_path / name).mkdir()
        given = settings(first, wire=wire, steps=2, learning_rate=rate, **learned)
        train_wire(
            readers, first, given, tmp_path / name, start=tmp_path / "a" / "checkpoints" / "final", log=print
        )
    still, moved = weights_of(tmp_path / "still"), weights_of(tmp_path / "moved")
    assert all(torch.allclose(still[name], each, atol=1e-6) for name, each in alone.items())
    assert any(not torch.allclose(moved[name], each, atol=1e-4) for name, each in alone.items())
    assert any(name.startswith(f"adapters.{key_of('qwen3')}") for name in still)
    assert any(name.startswith(f"readers.{key_of('qwen3')}") for name in still) == bool(learned)


@pytest.mark.slow
def test_another_adapter_for_a_reader_starts_anew_with_the_same_encoder(tmp_path):
    """How a bridge begins: with an encoder that its own model already reads."""
    run(tmp_path / "a")
    begin = tmp_path / "a" / "checkpoints" / "final"
    generator = DeepPrefixConfig(hidden=8)
    _, lm, said = run(tmp_path / "b", generator, begin, steps=2, learning_rate=1e-9)
    assert f"the adapter of {lm.name} starts anew" in said
    before, after = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in encoder)
    assert any(name.startswith(f"adapters.{key_of(lm.name)}") for name in after)
    _, _, told = run(tmp_path / "c", generator, tmp_path / "b" / "checkpoints" / "final", steps=2)
    assert not any("starts anew" in line for line in told)
    # Dropout has no weights: what the generator has learned stays.
    drops, slow = DeepPrefixConfig(hidden=8, dropout=0.1), {"steps": 2, "learning_rate": 1e-9}
    _, _, told = run(tmp_path / "d", drops, tmp_path / "b" / "checkpoints" / "final", **slow)
    assert not any("starts anew" in line for line in told)
    kept = weights_of(tmp_path / "d")
    assert all(torch.allclose(kept[name], each, atol=1e-6) for name, each in after.items())


@pytest.mark.slow
def test_a_readers_trained_weights_go_with_its_adapter(tmp_path):
    learned = {"reader_lora": Lora(rank=2)}
    run(tmp_path / "a", **learned)
    with pytest.raises(UserError, match="lacks adapters"):
        run(tmp_path / "b", DeepPrefixConfig(hidden=8), tmp_path / "a" / "checkpoints" / "final", **learned)
