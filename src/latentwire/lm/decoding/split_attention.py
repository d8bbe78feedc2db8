"""Attention of one query per row over a static cache, in Triton; reads each existing key once and nothing else.

For one query under a mask, torch's kernels use one processor per row and head, of which a GPU has more than there
are heads, and read the whole span. Here the keys of a row are split among several programs, whose partial results
a second kernel joins (FlashDecoding: https://pytorch.org/blog/flash-decoding/).
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Keys read per iteration."""
PROGRAMS = 512
"""Target number of programs: a few for each processor of a large GPU."""
MOST_SPLITS = 16


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    next_position: Tensor,
    positions: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """`(B, Hq, D)`, of queries `(B, Hq, D)` over keys and values `(B, H, C, D)`; D is a power of two.

    Args:
        lengths: `(B,)`, the index of each row's last key. next_position: `(B,)`, of the queries.
        positions: `(B, C)`, of the keys; only a `window` needs them.
    """
    rows, heads, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    splits = 1
    while splits < MOST_SPLITS and splits * 2 * rows * shared <= PROGRAMS:
        splits *= 2
    padded = max(16, 1 << (group - 1).bit_length())  # matrix units take at least 16 rows
    query = query.contiguous()
    parts = torch.empty((rows, shared, splits, group, width), dtype=torch.float32, device=query.device)
    # Two tensors: the compiler would copy a slice of one before the kernel writes to it.
    tops, sums = (parts.new_empty(parts.shape[:-1]) for _ in range(2))
    out = torch.empty_like(query)
    _parts[(rows, shared, splits)](
        query, key, value, lengths, next_position, positions, parts, tops, sums, scale,
        key.stride(0), key.stride(1), key.stride(2), value.stride(0), value.stride(1), value.stride(2),
        positions.stride(0),
        GROUP=group, PADDED=padded, WIDTH=width, SPLITS=splits, BLOCK=BLOCK, WINDOW=window or 0,
        EXACT=query.dtype == torch.float32, num_warps=4, num_stages=2,
    )  # fmt: skip
    _join[(rows, heads)](parts, tops, sums, out, GROUP=group, WIDTH=width, SPLITS=splits, num_warps=4)
    return out


def agrees(device: torch.device, dtype: torch.dtype, heads: int, shared: int, width: int) -> bool:
    """Whether the kernels agree with sdpa on this device, on random inputs of this shape."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((3, heads, width), (3, shared, 200, width), (3, shared, 200, width))
    )
    lengths = torch.tensor([0, 150, 199], device=device)
    positions = torch.arange(200, device=device).expand(3, -1)
    for window in (None, 20):
        see = positions <= lengths[:, None]
        if window:
            see = see & (lengths[:, None] - positions < window)
        ours = attend(query, key, value, lengths, lengths, positions, window, 0.1).double()
        theirs = torch.nn.functional.scaled_dot_product_attention(
            query.double().view(3, shared, heads // shared, width),
            key.double(),
            value.double(),
            attn_mask=see[:, None, None].expand(-1, shared, heads // shared, -1),
            scale=0.1,
        ).view(3, heads, width)
        if not float((ours - theirs).norm() / theirs.norm()) < (1e-4 if dtype == torch.float32 else 1e-2):
            return False
    return True


@triton.jit
def _parts(
    query, key, value, lengths, next_position, positions, parts, tops, sums, scale,
    key_row, key_head, key_column, value_row, value_head, value_column, position_row,
    GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One program: a row, a key/value head, and every SPLITS-th share of the row's keys."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    heads = tl.num_programs(1)
    count = (tl.load(lengths + row) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK) * BLOCK
    start = split * share
    stop = tl.minimum(start + share, count)
    at = tl.load(next_position + row)
    scale = tl.full([], scale, dtype=tl.float32)  # a compiler that calls this kernel passes numbers as float64

    group = tl.arange(0, PADDED)
    lane = tl.arange(0, WIDTH)
    inside = group < GROUP
    asked = tl.load(
        query + ((row * heads + head) * GROUP + group[:, None]) * WIDTH + lane[None, :],
        mask=inside[:, None],
        other=0.0,
    )
    top = tl.full([PADDED], -1e30, dtype=tl.float32)
    total = tl.zeros([PADDED], dtype=tl.float32)
    found = tl.zeros([PADDED, WIDTH], dtype=tl.float32)
    key_base = key + row * key_row + head * key_head
    value_base = value + row * value_row + head * value_head
    for begin in range(start, stop, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        real = column < stop
        keys = tl.load(key_base + column[:, None] * key_column + lane[None, :], mask=real[:, None], other=0.0)
        if EXACT:
            score = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
        else:
            score = tl.dot(asked, tl.trans(keys)) * scale
        seen = real
        if WINDOW > 0:
            # The token's own key counts: its position is written before the step reads.
            place = tl.load(positions + row * position_row + column, mask=real, other=0)
            seen = seen & (at - place < WINDOW)
        score = tl.where(seen[None, :], score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        # Before anything is visible, exp(0) would count hidden keys.
        weight = tl.where(seen[None, :], tl.exp(score - higher[:, None]), 0.0)
        shrink = tl.exp(top - higher)
        values = tl.load(
            value_base + column[:, None] * value_column + lane[None, :], mask=real[:, None], other=0.0
        )
        if EXACT:  # noqa: SIM108
            more = tl.dot(weight, values, input_precision="ieee")
        else:
            more = tl.dot(weight.to(values.dtype), values)
        found = found * shrink[:, None] + more
        total = total * shrink + tl.sum(weight, 1)
        top = higher
    place = ((row * heads + head) * SPLITS + split) * GROUP + group
    tl.store(parts + place[:, None] * WIDTH + lane[None, :], found, mask=inside[:, None])
    tl.store(tops + place, top, mask=inside)
    tl.store(sums + place, total, mask=inside)


@triton.jit
def _join(parts, tops, sums, out, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """One program: a row and a query head."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    split = tl.arange(0, SPLITS)
    lane = tl.arange(0, WIDTH)
    place = ((row * (heads // GROUP) + head // GROUP) * SPLITS + split) * GROUP + head % GROUP
    top = tl.load(tops + place)
    weight = tl.exp(top - tl.max(top, 0))
    found = tl.load(parts + place[:, None] * WIDTH + lane[None, :])
    total = tl.sum(tl.load(sums + place) * weight, 0)
    joined = tl.sum(found * weight[:, None], 0) / total
    tl.store(out + (row * heads + head) * WIDTH + lane, joined.to(out.dtype.element_ty))
