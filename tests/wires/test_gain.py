"""A gain on what latents deliver, constant or by decoding step."""

from __future__ import annotations

import pytest
import torch

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation.evaluate import evaluate
from latentwire.lm.decoding import Decoding
from latentwire.lm.prefix import pad_rows
from latentwire.lm.prompts import Prompt
from latentwire.tasks import resolve
from latentwire.wires.latent.adapters import BothConfig, EmbeddingsConfig, NativeConfig
from latentwire.wires.latent.encoders import SelfConfig
from latentwire.wires.latent.gain import Gain
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.stepwise import Stepwise
from tests.support.fused_bridges import fused_config, modules_of, stored
from tests.support.models import tiny_lm

PROMPTS = [
    Prompt(context="Ada lives in the old town by the river.", question="Where does Ada live?"),
    Prompt(context="The heron stood.", question="Who?"),
    Prompt(context="one two three four five six seven", question="What?"),
]
ANSWERS = [[[5, 6, 7, 8, 9], [10]], [[11, 12]], [[13, 14, 15]]]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(max_position_embeddings=1024)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    """A trained wire whose reader gets soft tokens and keys and values."""
    torch.manual_seed(0)
    adapter = BothConfig(embeddings=EmbeddingsConfig(hidden=8), prefix=NativeConfig())
    config = LatentConfig(source=lm.name, encoder=SelfConfig(rank=2, gives="both"), adapters={lm.name: adapter})
    place = tmp_path_factory.mktemp("wire")
    LatentModules(config, {lm.name: lm}, lm).save(place)
    return place


def steps(lm, spec):
    wire = wires.parse(spec).bind(lm)
    message = wire.send(PROMPTS, lm)
    return Stepwise(wire, message, PROMPTS, lm), lm.prefill(wire.deliver(message, PROMPTS, lm))


def predicted(lm, spec, ids):
    """Log-probabilities `(B, A, V)` of each token after those before it, all under one constant gain."""
    with torch.no_grad():
        hidden = lm.forced(wires.parse(spec).bind(lm)(PROMPTS, lm), pad_rows(ids, -100)).hidden
        return lm.head(hidden).log_softmax(-1)


@pytest.mark.parametrize(("text", "factors"), [("0.8", [0.8] * 4), ("2x1+1.5x2+1", [2, 1.5, 1.5, 1])])
def test_a_gain_is_written_as_factors_by_step(text, factors):
    gain = Gain.parse(text)
    assert [gain.at(step) for step in range(4)] == factors
    assert str(gain) == text
    assert wires.parse(f"nth,ratio=4,gain={text}").label == f"nth,ratio=4,gain={text}"
    assert wires.parse("nth,ratio=4,gain=1").label == "nth,ratio=4"


@pytest.mark.parametrize("text", ["", "loud", "2x3", "2+1", "-1", "2x0+1", "1e400x", "2x1+1x1"])
def test_what_is_no_gain_is_refused_in_one_sentence(folder, text):
    for spec in ("nth,ratio=4", str(folder)):
        with pytest.raises(UserError, match=r"expected a factor such as 0\.8, or factors by step such as"):
            wires.parse(f"{spec},gain={text}")


def test_a_constant_gain_scales_values_and_soft_tokens_and_leaves_keys(lm, folder):
    plain, loud = (wires.parse(f"{folder}{gain}").bind(lm)(PROMPTS, lm) for gain in ("", ",gain=1.5"))
    for mine, theirs in zip(loud.memory.values, plain.memory.values, strict=True):
        torch.testing.assert_close(mine, 1.5 * theirs)
    assert all(torch.equal(a, b) for a, b in zip(loud.memory.keys, plain.memory.keys, strict=True))
    soft = plain.memory.columns.width
    torch.testing.assert_close(loud.embeddings[:, :soft], 1.5 * plain.embeddings[:, :soft])
    assert torch.equal(loud.embeddings[:, soft:], plain.embeddings[:, soft:])


def test_a_trained_wire_with_a_gain_is_named_by_it(folder):
    for spec in (f"{folder},gain=0.5", f"{folder},gain=2x1+1:4bit"):
        assert wires.parse(spec).label == spec
        assert wires.parse(wires.parse(spec).label) == wires.parse(spec)


@pytest.mark.parametrize("spec", ["nth,ratio=3", "evict,ratio=3,budget=head", "FOLDER"])
def test_each_token_is_written_under_the_gain_of_its_step(lm, folder, spec):
    spec = spec.replace("FOLDER", str(folder))
    stepwise, prefilled = steps(lm, f"{spec},gain=3x2+0.5x3+1")
    texts = stepwise.generate(prefilled, Decoding(max_new_tokens=8))
    ids = [list(text.ids) for text in texts]
    assert all(text.text == lm.decode(text.ids) for text in texts)
    by_gain = {gain: predicted(lm, f"{spec},gain={gain}", ids).argmax(-1) for gain in (3, 0.5, 1)}
    for row, written in enumerate(ids):
        for step, token in enumerate(written):
            gain = 3 if step < 2 else 0.5 if step < 5 else 1
            assert int(by_gain[gain][row, step]) == token
    assert ids != [list(text.ids) for text in lm.generate(prefilled, Decoding(max_new_tokens=8))]


def test_each_token_is_scored_under_the_gain_of_its_step(lm):
    stepwise, prefilled = steps(lm, "nth,ratio=3,gain=3x2+1")
    scores = stepwise.score(prefilled, ANSWERS)
    ids = [row[0] for row in ANSWERS]
    loud, plain = predicted(lm, "nth,ratio=3,gain=3", ids), predicted(lm, "nth,ratio=3", ids)
    for row, answer in enumerate(ids):
        expected = sum(float((loud if at < 2 else plain)[row, at, token]) for at, token in enumerate(answer))
        assert scores[row][0].logprob == pytest.approx(expected, abs=1e-4)
        assert scores[row][0].tokens == len(answer)
    assert [len(row) for row in scores] == [2, 1, 1]


def test_a_stop_string_that_runs_across_two_gains_ends_the_text(lm):
    stepwise, prefilled = steps(lm, "nth,ratio=3,gain=3x2+1")
    whole = stepwise.generate(prefilled, Decoding(max_new_tokens=8))
    for row, text in enumerate(whole):
        across = lm.decode(text.ids[:3])[len(lm.decode(text.ids[:1])) :]
        cut = stepwise.generate(prefilled, Decoding(max_new_tokens=8, stop=(across,)))[row]
        assert (cut.text, cut.ended) == (text.text[: text.text.find(across)], "stop")


def test_an_evaluation_reads_latents_again_where_their_gain_changes(lm):
    tasks = resolve(["one_hop"], None)
    specs = ("nth,ratio=4", "nth,ratio=4,gain=1x2+1", "nth,ratio=4,gain=1x2+4")
    results = {
        spec: [(each.prediction, each.metrics["nll"]) for each in outcomes]
        for spec in specs
        for outcomes in [evaluate(lm, tasks, [wires.parse(spec)], limit=4).outcomes]
    }
    plain, same, loud = (results[spec] for spec in specs)
    assert [text for text, _ in same] == [text for text, _ in plain]
    assert [nll for _, nll in same] == pytest.approx([nll for _, nll in plain], abs=1e-4)
    assert loud != plain


def test_an_adapter_with_gates_of_its_own_takes_no_gain(tmp_path):
    reader = stored(tmp_path, "llama", bos=True)
    modules = modules_of(fused_config(reader), reader)
    with pytest.raises(UserError, match="gain: found 2 with the adapter fuse, expected 1"):
        modules.deliver(modules(["The heron stood."]), reader.name, None, 2.0)
