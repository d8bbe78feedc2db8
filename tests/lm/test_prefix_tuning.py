"""Prefix tuning gives the logits of PEFT under every mask, and is trained and saved as the adapter alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire import LM, UserError
from latentwire.evaluation.perturbation import look
from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL
from latentwire.training.finetuning.trainable import Trainable
from tests.support.checkpoints import write_plain, write_prefix
from tests.support.dense import Layout, dense, numbers, stock
from tests.support.models import SLIDING, tiny_model

TOKENS = 3
PROMPT, ANSWER = numbers(9, 1), numbers(4, 2)
FITTING = ("llama", "qwen3", "mistral", "ministral3", "gemma3")
"""The families whose key/value heads PEFT counts right."""


@pytest.fixture(scope="module", params=FITTING)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, Any]:
    """The same model after the same prefix, as this package reads it and as PEFT does."""
    folder = tmp_path_factory.mktemp(request.param)
    write_plain(tiny_model(request.param), folder / "m")
    write_prefix(tiny_model(request.param), folder / "prefix", TOKENS)
    theirs = peft.PeftModel.from_pretrained(tiny_model(request.param), str(folder / "prefix")).eval()
    return LM.load(folder / "m", device="cpu", adapter=folder / "prefix"), theirs


@torch.no_grad()
def test_every_token_after_the_prefix_is_read_as_in_peft(both: tuple[LM, Any]) -> None:
    lm, theirs = both
    want = theirs(input_ids=torch.tensor([PROMPT + ANSWER])).logits[0]
    bare = lm.model(input_ids=torch.tensor([PROMPT + ANSWER])).logits[0]
    assert float((want - bare).abs().max()) > 0.1
    prefix, after = Prefix.of_tokens([PROMPT]), want[len(PROMPT) - 1 : -1]
    forced = lm.forced(prefix, torch.tensor([ANSWER]))
    torch.testing.assert_close(lm.head(forced.hidden)[0], after, atol=1e-4, rtol=0)
    prefilled = lm.prefill(prefix)
    torch.testing.assert_close(prefilled.logits[0], after[0], atol=1e-4, rtol=0)
    logprobs = after.log_softmax(-1).gather(1, torch.tensor(ANSWER)[:, None])
    ((score,),) = lm.score(prefilled, [[ANSWER]])
    assert score.logprob == pytest.approx(float(logprobs.sum()), abs=1e-3)
    for token, at in zip(ANSWER, range(1, 4), strict=False):
        prefilled = lm.append(prefilled, torch.tensor([[token]]))
        torch.testing.assert_close(prefilled.logits[0], after[at], atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_and_other_rows_change_nothing(both: tuple[LM, Any]) -> None:
    lm, _ = both
    alone = lm.prefill(Prefix.of_tokens([PROMPT], [[0] * 9])).logits
    beside = lm.prefill(Prefix.of_tokens([numbers(15, 4), PROMPT], [[CAUSAL] * 15, [0] * 9])).logits
    torch.testing.assert_close(beside[1:], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_bidirectional_prompt_sees_itself_and_the_prefix_and_nothing_leaks(both: tuple[LM, Any]) -> None:
    lm, _ = both
    prefix = Prefix.of_tokens([PROMPT], [[0] * 9])
    for sight in look(lm, prefix, ANSWER, "sdpa", ("none", "right", "left")):
        assert (sight.forbidden, sight.own_label) == (0, False)
        assert sight.unpadded < 1e-4
        assert lm.model.config.model_type.removesuffix("_text") in SLIDING or sight.reads_ahead == 1
    learned = lm.prefix_tuning
    assert learned is not None
    before = lm.forced(prefix, torch.tensor([ANSWER])).hidden
    first = lm.run(prefix.ids, prefix.columns, lm._reading(prefix))  # type: ignore[arg-type]
    kept = learned.weight.data.clone()
    learned.weight.data[TOKENS - 1] += 1.0
    changed = (lm.run(prefix.ids, prefix.columns, lm._reading(prefix)) != first).any(-1)  # type: ignore[arg-type]
    answers = (lm.forced(prefix, torch.tensor([ANSWER])).hidden != before).any(-1)
    learned.weight.data = kept
    assert bool(changed.all()), "every prompt token sees the nearest virtual token"
    assert bool(answers.all())


@torch.no_grad()
def test_a_prefix_made_of_tokens_equals_those_tokens_before_the_prompt(tmp_path: Path) -> None:
    """Keys and values of three real tokens as the learned prefix: then prompts are read as after these tokens."""
    model, real = tiny_model("qwen3"), numbers(TOKENS, 8)
    write_plain(model, tmp_path / "m")
    cache = model(input_ids=torch.tensor([real]), use_cache=True).past_key_values
    pairs = [each for layer in cache.layers for each in (layer.keys[0], layer.values[0])]
    weight = torch.stack(pairs).permute(2, 0, 1, 3).reshape(TOKENS, -1)
    write_prefix(model, tmp_path / "prefix", TOKENS, weight)
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    blocks = [CAUSAL] * TOKENS + [0] * 9 + [CAUSAL] * 4
    row = Layout([True] * 16, list(range(16)), blocks, [-1] * 16)
    slow = dense(stock(lm.model), torch.tensor([real + PROMPT + ANSWER]), [row])[0, TOKENS + 8 : -1]
    forced = lm.forced(Prefix.of_tokens([PROMPT], [[0] * 9]), torch.tensor([ANSWER]))
    torch.testing.assert_close(lm.head(forced.hidden)[0], slow, atol=1e-4, rtol=0)
    assert lm.max_positions == 128 - TOKENS
    with pytest.raises(UserError, match="found 126 tokens, expected at most 125"):
        lm.prefill(Prefix.of_tokens([numbers(126, 1)]))


@torch.no_grad()
def test_the_memory_of_a_wire_comes_after_the_learned_prefix(tmp_path: Path) -> None:
    """Its keys turn with the tokens: a memory of read tokens is those tokens, with a learned prefix too."""
    write_plain(tiny_model(), tmp_path / "m")
    write_prefix(tiny_model(), tmp_path / "prefix", TOKENS)
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    context, question = numbers(5, 3), numbers(6, 4)
    whole = lm.prefill(Prefix.of_tokens([context + question]))
    layers = lm.prefill(Prefix.of_tokens([context])).cache.layers
    own = Prefix.of_tokens([context]).columns
    positions = own.positions + TOKENS
    keys = tuple(lm.rotary.rotate(n, layer.keys, positions, back=True) for n, layer in enumerate(layers))
    memory = Memory(keys, tuple(layer.values for layer in layers), own)
    asked = Prefix.of_tokens([question])
    columns = Columns.of(asked.columns.valid, asked.columns.positions + len(context))
    ours = lm.prefill(Prefix(ids=asked.ids, columns=columns, memory=memory))
    torch.testing.assert_close(ours.logits, whole.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_load_two_steps_save_reload_gives_the_same_bits_and_peft_reads_it(family: str, tmp_path: Path) -> None:
    write_plain(tiny_model(family), tmp_path / "m")
    write_prefix(tiny_model(family), tmp_path / "prefix", TOKENS)
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    learned = lm.prefix_tuning
    assert learned is not None
    base = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    optimizer = torch.optim.AdamW(learned.parameters(), lr=0.1)
    prefix, answers = Prefix.of_tokens([PROMPT], [[0] * 9]), torch.tensor([ANSWER])
    before = lm.prefill(prefix).logits
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(lm.head(lm.forced(prefix, answers).hidden)[0], answers[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = lm.prefill(prefix).logits
    assert not torch.allclose(before, after, atol=1e-2)
    assert all(torch.equal(tensor, base[name]) for name, tensor in lm.model.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    lm.format = lm.format.model_copy(update={"anchor": "So:"})
    lm.save(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "prompt_format.json",
    ]
    back = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "out")
    assert torch.equal(back.prefill(prefix).logits, after)
    assert back.format.anchor == "So:"
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "out")).eval()
    want = theirs(input_ids=torch.tensor([PROMPT])).logits[:, -1]
    torch.testing.assert_close(back.prefill(Prefix.of_tokens([PROMPT])).logits, want, atol=1e-4, rtol=0)


def test_a_prefix_works_with_a_device_map(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path / "m")
    write_prefix(tiny_model(), tmp_path / "prefix", TOKENS)
    prefix = Prefix.of_tokens([PROMPT])
    want = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix").prefill(prefix).logits
    mapped = LM.load(tmp_path / "m", device_map={"": "cpu"}, dtype=torch.float32, adapter=tmp_path / "prefix")
    torch.testing.assert_close(mapped.prefill(prefix).logits, want, atol=1e-5, rtol=0)


def test_a_projected_prefix_equals_the_prefix_it_projects_to(tmp_path: Path) -> None:
    """PEFT stores what its projection made."""
    write_plain(tiny_model(), tmp_path / "m")
    write_prefix(tiny_model(), tmp_path / "prefix", TOKENS, prefix_projection=True)
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    lm.save(tmp_path / "out")
    old, new = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("prefix", "out"))
    assert torch.equal(old["prompt_embeddings"], new["prompt_embeddings"])


def test_a_model_that_trained_beside_its_prefix_is_not_saved_as_an_adapter(tmp_path: Path) -> None:
    write_plain(tiny_model(), tmp_path / "m")
    write_prefix(tiny_model(), tmp_path / "prefix", TOKENS)
    lm = LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    lm.model.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"embed_tokens.weight trains too, and an adapter alone would lose it"):
        lm.save(tmp_path / "out")
    lm.model.requires_grad_(False)
    assert lm.prefix_tuning is not None
    lm.prefix_tuning.weight.data[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match=r"prompt_embeddings of .* holds NaN"):
        lm.save(tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(UserError, match="expected a model without a learned prefix"):
        Trainable(lm, None)


def _changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        state = load_file(folder / "adapter_model.safetensors")
        change(state)
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})

    return harm


def _truncated(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _of_embeddings(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))


_NAME = "prompt_embeddings"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_changed(lambda s: s.update({"other": s.pop(_NAME)})), "other finds no place in the model"),
        (
            _changed(lambda s: s.update({_NAME: s[_NAME][:, :-8].contiguous()})),
            r"does not fit LlamaForCausalLM: .*\[3, 88\]",
        ),
        (_changed(lambda s: s.update({_NAME: s[_NAME] * torch.nan})), "prompt_embeddings of .* holds NaN"),
        (_truncated, "adapter_model.safetensors cannot be read"),
        (_of_embeddings, "found PROMPT_TUNING .*, expected LORA or PREFIX_TUNING; .* shift the blocks"),
    ],
    ids=["strange", "shape", "nan", "truncated", "embeddings"],
)
def test_a_damaged_prefix_is_refused_in_one_sentence(
    harm: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write_prefix(tiny_model(), tmp_path / "prefix", TOKENS)
    write_plain(tiny_model(), tmp_path / "m")
    harm(tmp_path / "prefix")
    with pytest.raises(UserError, match=said) as error:
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
    assert "\n" not in str(error.value)


def test_a_prefix_for_another_model_is_refused(tmp_path: Path) -> None:
    write_prefix(tiny_model(num_hidden_layers=2), tmp_path / "prefix", TOKENS)
    write_plain(tiny_model(), tmp_path / "m")
    with pytest.raises(UserError, match=r"adapter: .*prefix"):
        LM.load(tmp_path / "m", device="cpu", adapter=tmp_path / "prefix")
