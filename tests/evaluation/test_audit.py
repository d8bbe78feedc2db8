"""The audit finds leaks where there are some and none where there are none."""

import pytest
import torch

from latentwire import wires
from latentwire.evaluation.audit import audit, sample_losses
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Reading
from latentwire.lm.prompts import Example
from tests.support.models import FAMILIES, tiny_lm, tiny_tokenizer

KERNELS = ("sdpa", "eager")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["text", "text,mask=prefix", "text,mask=prefix,layers=0-0", "text,mask=segments"])
def test_honest_wires_pass_on_every_family(family, spec):
    found = audit(tiny_lm(family), wires.parse(spec), kernels=KERNELS)
    assert found.problems == []
    assert {(sight.kernel, sight.padding) for sight in found.sights} == {
        (kernel, padding) for kernel in KERNELS for padding in ("none", "right", "left")
    }
    ahead = {sight.reads_ahead > 0 for sight in found.sights}
    assert ahead == {spec != "text"}


@pytest.mark.parametrize("family", FAMILIES)
def test_leaky_is_caught_on_every_family(family):
    found = audit(tiny_lm(family), wires.parse("leaky"), kernels=KERNELS)
    assert any("its own label" in problem for problem in found.problems)


def test_an_attention_that_forgets_the_mask_under_padding_is_caught(monkeypatch):
    """The defect of patched `is_causal` flags: right without padding, silently another mask with it."""
    lm = tiny_lm()
    honest = Reading.visible

    def forgetful(self, *args):
        see = honest(self, *args)
        padded = not bool(self.columns.valid.all())
        return torch.ones_like(see) if padded else see

    monkeypatch.setattr(Reading, "visible", forgetful)
    found = audit(lm, wires.parse("text"), kernels=["sdpa"])
    assert {sight.padding for sight in found.sights if sight.own_label} == {"right", "left"}


def test_decoding_that_loses_the_prefix_mask_is_caught(monkeypatch):
    lm = tiny_lm()
    honest = Reading.visible
    monkeypatch.setattr(
        Reading, "visible", lambda self, q, k, layer, window: honest(self, q, k, layer, 2 if q == 1 else window)
    )
    found = audit(lm, wires.parse("text,mask=prefix"), kernels=["sdpa"])
    assert any("differs from one full pass" in problem for problem in found.problems)


def test_a_supervised_token_that_is_not_the_answers_first_is_caught(monkeypatch):
    lm = tiny_lm()
    encode = type(lm.format).encode

    def late(self, example, reader):
        prompt, answers = encode(self, example, reader)
        return prompt, tuple(answer[1:] for answer in answers)

    monkeypatch.setattr(type(lm.format), "encode", late)
    found = audit(lm, wires.parse("text"), kernels=["sdpa"])
    assert any("first supervised token" in problem for problem in found.problems)


@pytest.mark.parametrize("options", [{}, {"bos": True}, {"bos": True, "eos": True}, {"merge_blanks": True}])
def test_the_first_supervised_token_is_the_first_of_the_answer_for_every_tokenizer(options):
    lm = tiny_lm()
    lm.tokenizer = tiny_tokenizer(**options)
    examples = [
        Example(id=str(n), group="g", context="Ada has 12 apples.", question="How many?", answers=(answer,))
        for n, answer in enumerate(["12", "in the old town", "Bob", "é", "#### 7"])
    ]
    found = audit(lm, wires.parse("text"), examples, kernels=["sdpa"])
    if not options.get("merge_blanks"):
        assert [problem for problem in found.problems if "supervised" in problem] == []
    assert len(found.first_tokens) == 6


def test_the_audit_leaves_the_kernel_as_it_was():
    lm = tiny_lm(kernel="eager")
    audit(lm, wires.parse("text"), kernels=["sdpa"])
    assert attention.kernel(lm.model) == "eager"


def test_losses_stand_side_by_side():
    lm = tiny_lm(max_position_embeddings=512)
    assert list(sample_losses(lm, wires.parse("repeat"))) == [
        "causal",
        "prefix",
        "fully bidirectional",
        "repeat",
    ]
