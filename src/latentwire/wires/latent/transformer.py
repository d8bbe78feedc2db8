"""A small transformer that reads in both directions: of the `bytes` encoder, and the refiner of latents."""

from __future__ import annotations

from torch import Tensor, nn

from latentwire.lm.masks.safe_gradients import safe_gradients


class Bidirectional(nn.Module):
    """Layers of PyTorch's own kind, normalised before each part, four times as wide inside.

    heads: divide `width`.
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
        """`(B, T, width)` of as much; columns that are not `valid` `(B, T)` are seen by none."""
        hidden = ~valid
        hidden[:, 0] = False  # a softmax over nothing is not a number
        with safe_gradients():
            for layer in self.layers:
                content = layer(content, src_key_padding_mask=hidden)
        return content

    def begin_as_identity(self) -> None:
        """Zero what every layer adds, so that at first it changes nothing."""
        for layer in self.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            for last in (layer.self_attn.out_proj, layer.linear2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
