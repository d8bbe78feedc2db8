"""Ridge regression begins a bridge as the linear map that is best, and as the text itself where one can be."""

import pytest
import torch

from latentwire.errors import UserError
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.tasks.world.tiers import TIERS, ask_all
from latentwire.wires.latent import ridge
from latentwire.wires.latent.adapters import DeepPrefixConfig, ProjectedConfig
from latentwire.wires.latent.encoders import ConstantConfig, SelfConfig
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.modules import LatentModules, key_of
from latentwire.wires.latent.ridge import Ridge
from latentwire.wires.latent.select import Anchors, LearnedSlots
from latentwire.wires.latent.translators import CrossConfig, MlpConfig
from tests.support.bridges import reader_lm, saved, source_lm

FITTED = [ask_all(TIERS, number)[0].context for number in range(24)]
FRESH = [ask_all(TIERS, number)[0].context for number in range(100, 103)]
EXACT = {"states": "keys", "layers": (0, 1, 2, 3), "even": False, "select": Anchors(ratio=1)}


def wire(source, reader, width=128, adapter=None, **changes):
    torch.manual_seed(0)
    settings = {"translator": MlpConfig(hidden=8), "width": width, **EXACT, **changes}
    config = LatentConfig(
        source=source.name, encoder=SourceConfig(**settings), adapters={reader.name: adapter or ProjectedConfig()}
    )
    return LatentModules(config, {reader.name: reader}, source).eval()


def begun(source, reader, penalty=1e-9, **changes):
    modules = wire(source, reader, **changes)
    return modules, ridge.begin(modules, {reader.name: reader}, FITTED, Ridge(penalty=penalty))[reader.name]


@torch.no_grad()
def off(modules, reader):
    """How far logits after the latents of contexts never seen are from those after the text, at most."""
    pairs = [[(reader.format.after("Who lives there?", reader), [5, 6, 7])] for _ in FRESH]
    asked = Questions.of(pairs, "cpu")
    text = Shared.of_tokens([reader.format.before(each, reader) for each in FRESH], "cpu")
    aims, made = (
        reader.head(asked.forced(each, reader).hidden)
        for each in (text, modules.deliver(modules(FRESH), reader.name))
    )
    return float((made - aims).abs().max())


@pytest.mark.slow
def test_a_model_that_is_its_own_source_reads_the_latents_as_the_text():
    lm = source_lm()
    before = off(wire(lm, lm), lm)
    found = {penalty: begun(lm, lm, penalty) for penalty in (1e-1, 1e-4, 1e-9)}
    apart = [off(modules, lm) for modules, _ in found.values()]
    assert apart[-1] < 1e-2 < before
    assert apart[0] > apart[1] > apart[2], "exact as the penalty goes to nothing"
    assert found[1e-9][1] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_too_narrow_a_latent_cannot_be_the_text_and_a_wider_one_is_nearer():
    lm = source_lm()
    found = [begun(lm, lm, width=width) for width in (4, 32, 128)]
    shares = [share for _, share in found]
    assert 0.05 < shares[0] < shares[1] < shares[2]
    assert shares[1] < 0.999
    assert off(found[0][0], lm) > off(found[2][0], lm)


def slow(modules, source, reader, penalty, width):
    """Reduced-rank ridge regression written down plainly; the map `(S, K)` and its constant."""
    from latentwire.wires.latent.ridge import _pairs, _pieces

    both = [_pairs(_pieces(modules, {reader.name: reader}), {reader.name: reader}, [each]) for each in FITTED]
    x, y = (torch.cat([pair[at] for pair in both]).double() for at in (0, 1))
    x_mean, x_std, y_mean, y_std = x.mean(0), x.std(0, unbiased=False), y.mean(0), y.std(0, unbiased=False)
    x, y = (x - x_mean) / x_std, (y - y_mean) / y_std
    # A penalty is as many further rows, one for each channel, whose target is zero.
    rows = (penalty * len(x)) ** 0.5 * torch.eye(x.shape[1]).double()
    x, y = torch.cat([x, rows]), torch.cat([y, torch.zeros(len(rows), y.shape[1]).double()])
    full = torch.linalg.lstsq(x, y).solution
    _, _, right = torch.linalg.svd(x @ full, full_matrices=False)
    whole = full @ right[:width].T @ right[:width] * y_std / x_std[:, None]
    return whole, y_mean - x_mean @ whole


@pytest.mark.parametrize("width", [6, 200])
@torch.no_grad()
def test_the_map_is_that_of_reduced_rank_ridge_regression(width):
    """Of another family with another tokenizer, from hidden states; wider latents change nothing."""
    source, reader = source_lm(), reader_lm()
    settings = {"width": width, "states": "hidden", "even": True, "layers": (1, 3), "select": Anchors(ratio=3)}
    modules, share = begun(source, reader, 0.05, **settings)
    expected, constant = slow(modules, source, reader, 0.05, width)
    translator, layers = modules.encoder.translator, modules.adapters[key_of(reader.name)].maps
    up, shift = torch.cat([each.weight for each in layers]), torch.cat([each.bias for each in layers])
    torch.testing.assert_close(translator.skip.weight.T @ up.T, expected.float(), atol=2e-4, rtol=1e-3)
    at_zero = up @ translator.skip.bias + shift
    torch.testing.assert_close(at_zero, constant.float(), atol=2e-4, rtol=1e-3)
    assert not translator.outer.weight.any()
    assert 0 < share < 1
    if width == 6:
        latents = modules(FITTED)
        size = latents.vectors[latents.valid].square().mean(0)
        assert bool(((size > 0.3) & (size < 1.05)).all()), "latents come to about one, as other pieces expect"


def test_few_contexts_are_taken_from_everywhere(monkeypatch):
    """Those of a file stand beside others of the same article."""
    lm, used = source_lm(), []
    modules, pairs = wire(lm, lm), ridge._pairs
    monkeypatch.setattr(
        ridge, "_pairs", lambda pieces, readers, some: used.extend(some) or pairs(pieces, readers, some)
    )
    ridge.begin(modules, {lm.name: lm}, FITTED, Ridge(contexts=6))
    assert used == FITTED[::4]


def test_what_ridge_left_at_zero_still_learns():
    lm = source_lm()
    modules, _ = begun(lm, lm, width=200)
    modules.deliver(modules.train()(FRESH), lm.name).memory.keys[0].square().sum().backward()
    layer = modules.adapters[key_of(lm.name)].maps[0]
    assert not layer.weight[:, 150:].any()
    assert layer.weight.grad[:, 150:].any()
    assert modules.encoder.translator.outer.weight.grad.any()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"translator": CrossConfig(heads=2)}, "found the encoder source with the translator cross"),
        ({"adapter": DeepPrefixConfig(hidden=8)}, "found the adapter deep_prefix of source, expected projected"),
    ],
)
def test_pieces_that_hold_no_linear_map_are_refused(changes, found):
    lm = source_lm()
    with pytest.raises(UserError, match=f"ridge: {found}"):
        begun(lm, lm, **changes)


def own(source, reader, width=128, **changes):
    """A wire whose source has low-rank adapters and sends keys and values of all its layers."""
    torch.manual_seed(0)
    encoder = SelfConfig(**{"mask": "causal", "rank": 2, "marks": False, "select": Anchors(ratio=1), **changes})
    adapters = {reader.name: ProjectedConfig()}
    return LatentModules(
        LatentConfig(source=source.name, encoder=encoder, width=width, adapters=adapters),
        {reader.name: reader},
        source,
    ).eval()


@pytest.mark.slow
def test_a_source_that_learns_begins_as_the_text_too():
    lm = source_lm()
    modules = own(lm, lm)
    before = off(modules, lm)
    share = ridge.begin(modules, {lm.name: lm}, FITTED, Ridge(penalty=1e-9))[lm.name]
    assert share == pytest.approx(1, abs=1e-2)
    assert off(modules, lm) < 0.2 * before, "nearly: a norm stands before the map"


def test_a_source_that_learns_is_aligned_to_the_reader(tmp_path):
    """Each latent stands where a token of the reader ends, and is fitted to that token's keys and values."""
    reader = saved(reader_lm(), tmp_path)
    modules = own(source_lm(), reader, align=reader.name, select=Anchors(ratio=3), gives="both")
    weights, spans = modules.encoder.taken(FRESH)
    assert [len(each) for each in spans] == [len(reader.format.before(each, reader)) for each in FRESH]
    assert torch.equal(weights.any(-1), modules.encoder(FRESH).valid)
    assert 0 < ridge.begin(modules, {reader.name: reader}, FITTED, Ridge())[reader.name] < 1
    modules.deliver(modules.train()(FRESH), reader.name).memory.keys[0].square().sum().backward()
    assert all(piece.grad is not None for piece in modules.refine.down.parameters())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"width": None}, "found no width of the wire with the encoder self"),
        ({"select": LearnedSlots(slots=4)}, "found slots, expected anchors"),
        ({"bos": True}, "found bos, expected"),
    ],
)
def test_a_source_that_learns_is_refused_where_its_latents_stand_for_no_tokens(changes, found):
    lm = source_lm()
    with pytest.raises(UserError, match=f"ridge: {found}"):
        ridge.check(own(lm, lm, **changes), {lm.name: lm})


def test_another_encoder_and_a_second_width_are_refused():
    lm = source_lm()
    plain = LatentConfig(source=lm.name, encoder=ConstantConfig(), adapters={lm.name: ProjectedConfig()})
    with pytest.raises(UserError, match="ridge: found the encoder constant, expected the encoder source"):
        ridge.check(LatentModules(plain, {lm.name: lm}, lm), {lm.name: lm})
    narrow = wire(lm, lm).config.model_copy(update={"width": 8})
    with pytest.raises(UserError, match="ridge: found width: 8 of the wire"):
        ridge.check(LatentModules(narrow, {lm.name: lm}, lm), {lm.name: lm})
