"""Ridge regression from a source's states to readers' keys and values, from which a bridge can start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.adapters.projected import ProjectedAdapter
from latentwire.wires.latent.align import Marked, Spans, marked, overlaps
from latentwire.wires.latent.encoders.self_encoder import SelfEncoder
from latentwire.wires.latent.encoders.source import SourceEncoder
from latentwire.wires.latent.modules import LatentModules, key_of
from latentwire.wires.latent.translators import MlpTranslator

_AT_ONCE = 8


class Ridge(BaseModel):
    """Settings of the regression.

    Attributes:
        contexts: how many contexts it uses.
        penalty: added to every direction, as a share of the mean variance of a state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contexts: int = Field(default=500, ge=1)
    penalty: float = Field(default=1e-2, gt=0)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The parts of a wire that hold a linear map from a state to a latent, and from there to keys and values.

    Attributes:
        encoder: gives the states.
        before: what is done to a state before the map, for which the encoder's own map must then wait.
        inward: the map from a state to a latent.
        rest: what adds to that map and begins at zero; None where nothing does.
        adapters: by reader, the maps from a latent.
    """

    encoder: SourceEncoder | SelfEncoder
    before: nn.Module
    inward: nn.Linear
    rest: nn.Linear | None
    adapters: dict[str, ProjectedAdapter]

    def states(self, contexts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, list[Spans]]:
        """States `(B, M, S)`, which of them are real `(B, M)`, and each as a mixture `(B, M, T)` of tokens.

        The tokens' places in the contexts, in characters, come last.
        """
        if isinstance(self.encoder, SourceEncoder):
            read = self.encoder.read(contexts).states
            assert read.weights is not None
            return read.weights @ read.content, read.real, read.weights, self.encoder.spans(contexts)
        latents = self.encoder(contexts)
        weights, spans = self.encoder.taken(contexts)
        return self.before(latents.flat().float()), latents.valid, weights, spans


@torch.no_grad()
def begin(
    modules: LatentModules, readers: Mapping[str, LM], contexts: Sequence[str], settings: Ridge
) -> dict[str, float]:
    """Set the wire to the linear map that best predicts its readers' own keys and values from the source's states.

    Targets are keys (not rotated) and values at the reader's tokens that share characters with a latent's columns.
    A latent that is narrower than a state keeps the directions that explain most of the targets, all channels of
    which count alike (reduced-rank regression). Sums are kept in float64, `(S, K)` for states of width S and K
    numbers of all keys and values.

    Args:
        contexts: to fit on; at most `settings.contexts` of them are used, evenly spread over all.

    Returns:
        By reader, the share of the variance of its keys and values in `contexts` that the map explains, at a
        latent's width.

    Raises:
        UserError: the wire's pieces cannot hold a linear map.
    """
    pieces = _pieces(modules, readers)
    sums = _Sums()
    # Neighbours are of one article: the words of few articles would not do for others.
    chosen = contexts[:: max(1, -(-len(contexts) // settings.contexts))]
    for at in range(0, len(chosen), _AT_ONCE):
        sums.add(*_pairs(pieces, readers, chosen[at : at + _AT_ONCE]))
    return _install(pieces, sums, settings.penalty)


def check(modules: LatentModules, readers: Mapping[str, LM]) -> None:
    """Check that the wire's pieces can hold a linear map.

    Raises:
        UserError: they cannot.
    """
    _pieces(modules, readers)


def _pieces(modules: LatentModules, readers: Mapping[str, LM]) -> _Pieces:
    encoder, width = modules.encoder, modules.config.width
    adapters = {}
    for name in readers:
        adapter = modules.adapters[key_of(name)]
        if not isinstance(adapter, ProjectedAdapter):
            kind = modules.config.adapters[name].kind
            raise UserError(f"ridge: found the adapter {kind} of {name}, expected projected.")
        adapters[name] = adapter
    if isinstance(encoder, SourceEncoder | SelfEncoder) and encoder.drafts:
        raise UserError("ridge: found draft: true, expected false: a draft stands for none of the text.")
    if isinstance(encoder, SourceEncoder) and isinstance(encoder.translator, MlpTranslator):
        if width is not None:
            raise UserError(f"ridge: found width: {width} of the wire, expected none but the source's.")
        skip, outer = encoder.translator.skip, encoder.translator.outer
        return _Pieces(encoder, nn.Identity(), skip, outer, adapters)
    if not isinstance(encoder, SelfEncoder):
        described = modules.config.encoder.described
        raise UserError(
            f"ridge: found {described}, expected the encoder source with the translator mlp, or the encoder self."
        )
    if encoder.settings.select.slots or encoder.settings.bos is not None:
        found = "slots" if encoder.settings.select.slots else "bos"
        raise UserError(f"ridge: found {found}, expected anchors or mean and the tokenizer's own BOS.")
    if modules.refine.down is None or modules.refine.layers is not None:
        found = "no width of the wire" if width is None else "a refiner"
        raise UserError(f"ridge: found {found} with the encoder self, expected a width and no refiner.")
    before, inward = modules.refine.down
    assert isinstance(inward, nn.Linear)
    return _Pieces(encoder, before, inward, None, adapters)


class _Sums:
    """Sums over N latents of states `(N, S)`, targets `(N, K)` and their products, less a guess of the means.

    The guess is the first batch's: without it float64 would lose what is small beside a large mean.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, states: Tensor, targets: Tensor) -> None:
        states, targets = states.double(), targets.double()
        if not self.count:
            self.at, self.aim = states.mean(0), targets.mean(0)
            self.state, self.target = torch.zeros_like(self.at), torch.zeros_like(self.aim)
            self.square = torch.zeros_like(self.aim)
            self.own = states.new_zeros(states.shape[1], states.shape[1])
            self.both = states.new_zeros(states.shape[1], targets.shape[1])
        states, targets = states - self.at, targets - self.aim
        self.count += len(states)
        self.state += states.sum(0)
        self.target += targets.sum(0)
        self.square += targets.square().sum(0)
        self.own += states.T @ states
        self.both += states.T @ targets

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means `(S,)`, `(K,)`, covariances `(S, S)`, `(S, K)`, and the targets' variances `(K,)`."""
        state, target = self.state / self.count, self.target / self.count
        own = self.own / self.count - torch.outer(state, state)
        both = self.both / self.count - torch.outer(state, target)
        return self.at + state, self.aim + target, own, both, self.square / self.count - target.square()


def _pairs(pieces: _Pieces, readers: Mapping[str, LM], contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States `(N, S)` of the contexts' latents, and all readers' keys and values `(N, K)` at the same places."""
    states, real, weights, spans = pieces.states(contexts)
    columns = []
    for name in pieces.adapters:
        lm = readers[name]
        before: Marked = marked(lm.format, lm)
        rows = [before(each) for each in contexts]
        with evaluating(lm.model):
            memory = lm.memorize(Prefix.of_tokens([ids for ids, _ in rows], device=lm.device))[1]
        # (B, M, T): a latent as a mixture of the reader's tokens
        mixed = weights.to(lm.device) @ overlaps(spans, [its for _, its in rows], lm.device)
        for pair in zip(memory.keys, memory.values, strict=True):
            # (B, M, H * D) each, as `ProjectedAdapter.shape` has them
            columns += [(mixed @ each.transpose(1, 2).flatten(2).float())[real.to(lm.device)] for each in pair]
    return states[real], torch.cat([each.to(real.device) for each in columns], 1)


def _install(pieces: _Pieces, sums: _Sums, penalty: float) -> dict[str, float]:
    mean, aim, own, both, variance = sums.moments()
    # States of one layer may be a thousand times another's: the penalty counts in units of each channel.
    size = _root(own.diagonal())
    spread = _root(variance)
    own, both = own / torch.outer(size, size), both / torch.outer(size, spread)
    lower = torch.linalg.cholesky(own + penalty * torch.eye(len(own), dtype=own.dtype, device=own.device))
    # With own + penalty = L L', the map is L'^-1 L^-1 both; U U' between the two leaves the directions of U.
    white = torch.linalg.solve_triangular(lower, both, upper=False)
    power, axes = torch.linalg.eigh(white @ white.T)
    skip = pieces.inward
    count = min(len(own), skip.out_features)
    axes = axes[:, power.argsort(descending=True)[:count]]
    down = torch.linalg.solve_triangular(lower.T, axes, upper=True) / size[:, None]
    up = (axes.T @ white) * spread
    # The rest of a latent wider than a state stays as initialised; at first no adapter reads it.
    skip.weight[:count] = down.T.to(skip.weight)
    skip.bias[:count] = -(mean @ down).to(skip.bias)
    if pieces.rest is not None:
        torch.nn.init.zeros_(pieces.rest.weight)
        torch.nn.init.zeros_(pieces.rest.bias)
    # Of the standardised targets: 2 a'c - a'(own)a for the map a, channel by channel.
    mapped = torch.linalg.solve_triangular(lower.T, axes, upper=True) @ (axes.T @ white)
    explained = 2 * (mapped * both).sum(0) - (mapped * (own @ mapped)).sum(0)
    shares, at = {}, 0
    for name, adapter in pieces.adapters.items():
        begun = at
        for layer in adapter.maps:
            some = slice(at, at + layer.out_features)
            layer.weight.zero_()
            layer.weight[:, :count] = up[:, some].T.to(layer.weight)
            layer.bias.copy_(aim[some])
            at = some.stop
        heard = variance[begun:at]
        shares[name] = float((explained[begun:at] * heard).sum() / heard.sum())
    return shares


def _root(variance: Tensor) -> Tensor:
    """Deviations, 1 where a channel is constant."""
    return torch.where(variance > 1e-12 * variance.max(), variance.clamp_min(0), 1.0).sqrt()
