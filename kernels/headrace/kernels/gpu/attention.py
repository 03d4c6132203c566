"""Paged attention: tiles of queries for prefill, splits of the context for decoding.

The ideas are those of three papers. Keys and values lie in blocks that a table
names: Kwon et al., "Efficient Memory Management for Large Language Model
Serving with PagedAttention" (SOSP 2023). A running peak and sum per query make
one pass over the keys enough, and the division waits for the end: Dao,
"FlashAttention-2" (2023). A decoding row has one query, too little work to fill
a device, so its context is split among programs and a second kernel merges
what they found: Dao, Haziza, Massa and Sizov, "Flash-Decoding" (2023). Ainslie
et al., "GQA" (2023) is why the query heads of one key-value head stand in one
tile: a key that is loaded serves all of them.

NOTE: a split has a fixed number of keys, whatever else is in the batch. A
number of splits chosen to fill the device would let the other rows change how a
row's sums are rounded, and so, now and then, its tokens. The price is that full
batches are split as well: a split writes one result for the 512 keys it reads.

Nothing is read back to the host: grids follow from shapes, and programs past
the end of their row, or that meet a row of the other kind, return at once.
"""

import torch
import triton

from headrace.kernels.attention_batch import AttentionBatch
from headrace.kernels.gpu.attention_kernels import decode_split, merge_splits, prefill_tile
from headrace.kernels.gpu.jit import launch, next_power_of_two

SPLIT_SIZE = 512
"""Keys that one program of a decoding row reads."""
_QUERY_TILE = 64
"""Queries, over tokens and heads, that one program of a prefill row takes."""
_SMALLEST_TILE = 16
"""Below it the matrix units of a GPU take nothing."""
_MERGE_TILE = 16
"""Splits that are merged at once."""
_LOG2_E = 1.4426950408889634


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    is_interpreted: bool,
) -> torch.Tensor:
    """Takes and returns [token, head, head_dim]; see Kernels.paged_attention.

    Args:
        query: [token, head, head_dim].
        key_cache: [block, kv_head, block_size, head_dim].
        value_cache: [block, kv_head, block_size, head_dim].
        batch: The rows of the step.
        scale: Factor of the scores.
        is_interpreted: Triton's interpreter runs the kernels. It multiplies the bit
            patterns of bfloat16 as if they were integers, so it gets float32 instead.
    """
    if is_interpreted and query.dtype == torch.bfloat16:
        wide = (query.float(), key_cache.float(), value_cache.float())
        return paged_attention(*wide, batch, scale=scale, is_interpreted=True).to(query.dtype)
    output = torch.empty_like(query)
    if query.shape[0] > batch.context_lengths.shape[0]:
        _prefill(query, key_cache, value_cache, batch, output, scale=scale * _LOG2_E)
    _decode(query, key_cache, value_cache, batch, output, scale=scale * _LOG2_E)
    return output


def _prefill(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    output: torch.Tensor,
    *,
    scale: float,
) -> None:
    """Fills the output of rows that bring several tokens."""
    token_count, head_count, _ = query.shape
    row_count, kv_head_count = batch.context_lengths.shape[0], key_cache.shape[1]
    group = head_count // kv_head_count
    tile = max(_QUERY_TILE, next_power_of_two(group))
    # Each row ends with at most one tile that is not full.
    tile_count = token_count // (tile // group) + row_count
    launch(
        prefill_tile,
        (tile_count, kv_head_count),
        *(query, key_cache, value_cache, output),
        *(batch.block_tables, batch.query_starts, batch.context_lengths),
        *(row_count, scale, batch.block_tables.stride(0)),
        *(key_cache.stride()[:3], value_cache.stride()[:3]),
        row_size=next_power_of_two(row_count),
        tile=tile,
        **_constants(query, key_cache, group),
    )


def _decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    output: torch.Tensor,
    *,
    scale: float,
) -> None:
    """Fills the output of rows that bring one token."""
    _, head_count, head_dim = query.shape
    (row_count, table_width), kv_head_count = batch.block_tables.shape, key_cache.shape[1]
    split_count = triton.cdiv(table_width * key_cache.shape[2], SPLIT_SIZE)
    group = head_count // kv_head_count
    is_whole = split_count == 1
    found = output
    statistics = torch.empty((2, row_count, head_count, split_count), dtype=torch.float32, device=query.device)
    if not is_whole:
        found = query.new_empty((row_count, head_count, split_count, head_dim), dtype=torch.float32)
    launch(
        decode_split,
        (row_count, kv_head_count, split_count),
        *(query, key_cache, value_cache, found, statistics[0], statistics[1]),
        *(batch.block_tables, batch.query_starts, batch.context_lengths),
        *(scale, batch.block_tables.stride(0)),
        *(key_cache.stride()[:3], value_cache.stride()[:3]),
        is_whole=is_whole,
        tile=max(_SMALLEST_TILE, next_power_of_two(group)),
        split_size=SPLIT_SIZE,
        **_constants(query, key_cache, group),
    )
    if not is_whole:
        launch(
            merge_splits,
            (row_count, head_count),
            *(found, statistics[0], statistics[1], output, batch.query_starts, batch.context_lengths),
            *(split_count, head_dim),
            split_size=SPLIT_SIZE,
            merge_tile=_MERGE_TILE,
            size=next_power_of_two(head_dim),
        )


def _constants(query: torch.Tensor, key_cache: torch.Tensor, group: int) -> dict[str, int]:
    """Returns what both kernels are compiled for."""
    return {
        "head_count": query.shape[1],
        "group": group,
        "head_dim": query.shape[2],
        "block_size": key_cache.shape[2],
        "key_tile": 32 if query.dtype == torch.float32 else 64,
        "size": max(_SMALLEST_TILE, next_power_of_two(query.shape[2])),
        "num_warps": 4,
        "num_stages": 2,
    }
