"""A small bidirectional transformer, for the `bytes` encoder and for the refiner of latents."""

from __future__ import annotations

from torch import Tensor, nn

from latentwire.lm.masks.safe_gradients import safe_gradients


class Bidirectional(nn.Module):
    """PyTorch's own pre-norm encoder layers, with an MLP four times as wide.

    Args:
        width: of the states, a multiple of `heads`.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        # One by one: `nn.TransformerEncoder` copies one layer, weights included.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )

    def forward(self, content: Tensor, valid: Tensor) -> Tensor:
        """States `(B, T, width)` of content `(B, T, width)`; no column sees one that is not `valid` `(B, T)`."""
        hidden = ~valid
        hidden[:, 0] = False  # a softmax over nothing is NaN
        with safe_gradients():
            for layer in self.layers:
                content = layer(content, src_key_padding_mask=hidden)
        return content

    def begin_as_identity(self) -> None:
        """Zero what every layer adds, so that at first the transformer changes nothing."""
        for layer in self.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            for last in (layer.self_attn.out_proj, layer.linear2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
