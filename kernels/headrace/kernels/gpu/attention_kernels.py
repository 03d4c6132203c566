"""What each program of paged attention does; headrace.kernels.gpu.attention says why and launches them.

Strides count elements. Caches are [block, kv_head, block_size, head_dim], with
head_dim side by side. `scale` includes log2(e), since powers of two are what a
GPU computes. The tuples are the strides of a cache's blocks, heads and slots.
"""

# ruff: noqa: PLR0917 - Triton's functions take pointers and strides by position

import triton.language as tl

from headrace.kernels.gpu.jit import jit


@jit
def _scan_keys(
    queries: tl.tensor,
    positions: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    table: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_strides: tl.tuple,
    value_strides: tl.tuple,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    key_tile: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Attends from a tile of queries to the keys [begin, end) of one head.

    Args: queries [tile, size], positions [tile] of the last key that each sees.
    Returns: weighted values [tile, size], and of the weights the binary logarithm of the peak and the sum, [tile].
    """
    tile: tl.constexpr = queries.shape[0]
    size: tl.constexpr = queries.shape[1]
    columns = tl.arange(0, size)
    peak = tl.full((tile,), float("-inf"), tl.float32)
    mass = tl.zeros((tile,), tl.float32)
    total = tl.zeros((tile, size), tl.float32)
    for start in range(begin, end, key_tile):
        keys = start + tl.arange(0, key_tile)
        # What lies past the end is not even loaded: it may be a NaN.
        is_inside = keys < end
        blocks = tl.load(table + keys // block_size, mask=is_inside, other=0).to(tl.int64)
        offsets = keys % block_size
        mask = is_inside[:, None] & (columns < head_dim)[None, :]
        key_rows = key_cache + blocks * key_strides[0] + offsets * key_strides[2]
        value_rows = value_cache + blocks * value_strides[0] + offsets * value_strides[2]
        key = tl.load(key_rows[:, None] + columns[None, :], mask=mask, other=0.0)
        value = tl.load(value_rows[:, None] + columns[None, :], mask=mask, other=0.0)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        is_visible = is_inside[None, :] & (keys[None, :] <= positions[:, None])
        scores = tl.where(is_visible, scores, float("-inf"))
        # The first keys are visible to every query, so the peak is finite from here on.
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        shrink = tl.exp2(peak - new_peak)
        weights = tl.exp2(scores - new_peak[:, None])
        mass = mass * shrink + tl.sum(weights, axis=1)
        total = tl.dot(weights.to(value.dtype), value, total * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return total, peak, mass


@jit
def _find_row(
    query_starts: tl.tensor, row_count: tl.tensor, index: tl.tensor, tile_tokens: tl.constexpr, row_size: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Returns the row that the tile `index` of a batch belongs to, and the tile's first token in that row.

    A row that brings one token has no tile. Past the last tile, the row is `row_count` or more.
    """
    rows = tl.arange(0, row_size)
    starts = tl.load(query_starts + rows, mask=rows < row_count, other=0)
    lengths = tl.load(query_starts + rows + 1, mask=rows < row_count, other=0) - starts
    tile_counts = tl.where(lengths > 1, (lengths + tile_tokens - 1) // tile_tokens, 0)
    is_before = tl.cumsum(tile_counts, axis=0) <= index
    row = tl.sum(is_before.to(tl.int32), axis=0)
    return row, (index - tl.sum(tl.where(is_before, tile_counts, 0), axis=0)) * tile_tokens


@jit
def prefill_tile(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    output: tl.tensor,
    block_tables: tl.tensor,
    query_starts: tl.tensor,
    context_lengths: tl.tensor,
    row_count: tl.tensor,
    scale: tl.tensor,
    table_stride: tl.tensor,
    key_strides: tl.tuple,
    value_strides: tl.tuple,
    row_size: tl.constexpr,
    tile: tl.constexpr,
    head_count: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    key_tile: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Attends from some tokens of one row, with all heads that share one key-value head."""
    tile_tokens: tl.constexpr = tile // group
    index = tl.program_id(0)
    kv_head = tl.program_id(1)
    row, first = _find_row(query_starts, row_count, index, tile_tokens, row_size)
    if row >= row_count:
        return
    start = tl.load(query_starts + row)
    length = tl.load(query_starts + row + 1) - start
    context = tl.load(context_lengths + row)
    lanes = tl.arange(0, tile)
    tokens = first + lanes // group
    heads = kv_head * group + lanes % group
    columns = tl.arange(0, size)
    places = ((start + tokens).to(tl.int64) * head_count + heads) * head_dim
    is_real = (lanes < tile_tokens * group) & (tokens < length)
    mask = is_real[:, None] & (columns < head_dim)[None, :]
    queries = tl.load(query + places[:, None] + columns[None, :], mask=mask, other=0.0)
    computed = context - length
    total, _, mass = _scan_keys(
        queries,
        computed + tokens,
        0,
        tl.minimum(context, computed + first + tile_tokens),
        block_tables + row.to(tl.int64) * table_stride,
        key_cache + kv_head * key_strides[1],
        value_cache + kv_head * value_strides[1],
        key_strides,
        value_strides,
        scale,
        head_dim,
        block_size,
        key_tile,
    )
    found = (total / mass[:, None]).to(output.dtype.element_ty)
    tl.store(output + places[:, None] + columns[None, :], found, mask=mask)


@jit
def decode_split(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    found: tl.tensor,
    peaks: tl.tensor,
    masses: tl.tensor,
    block_tables: tl.tensor,
    query_starts: tl.tensor,
    context_lengths: tl.tensor,
    scale: tl.tensor,
    table_stride: tl.tensor,
    key_strides: tl.tuple,
    value_strides: tl.tuple,
    is_whole: tl.constexpr,
    tile: tl.constexpr,
    split_size: tl.constexpr,
    head_count: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    key_tile: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Attends from the one token of a row to one split of its context; `is_whole`: to all of it, to the end."""
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = tl.load(query_starts + row)
    context = tl.load(context_lengths + row)
    begin = tl.program_id(2) * split_size
    if (tl.load(query_starts + row + 1) - start != 1) | (begin >= context):
        return
    lanes, columns = tl.arange(0, tile), tl.arange(0, size)
    heads = kv_head * group + lanes
    mask = (lanes < group)[:, None] & (columns < head_dim)[None, :]
    places = (start.to(tl.int64) * head_count + heads) * head_dim
    queries = tl.load(query + places[:, None] + columns[None, :], mask=mask, other=0.0)
    total, peak, mass = _scan_keys(
        queries,
        context - 1 + tl.zeros((tile,), tl.int32),
        begin,
        tl.minimum(context, begin + split_size),
        block_tables + row * table_stride,
        key_cache + kv_head * key_strides[1],
        value_cache + kv_head * value_strides[1],
        key_strides,
        value_strides,
        scale,
        head_dim,
        block_size,
        key_tile,
    )
    if is_whole:
        tl.store(
            found + places[:, None] + columns[None, :], (total / mass[:, None]).to(found.dtype.element_ty), mask=mask
        )
    else:
        parts = (row * head_count + heads) * tl.num_programs(2) + tl.program_id(2)
        tl.store(found + parts[:, None] * head_dim + columns[None, :], total, mask=mask)
        tl.store(peaks + parts, peak, mask=lanes < group)
        tl.store(masses + parts, mass, mask=lanes < group)


@jit
def merge_splits(
    found: tl.tensor,
    peaks: tl.tensor,
    masses: tl.tensor,
    output: tl.tensor,
    query_starts: tl.tensor,
    context_lengths: tl.tensor,
    split_count: tl.tensor,
    head_dim: tl.tensor,
    split_size: tl.constexpr,
    merge_tile: tl.constexpr,
    size: tl.constexpr,
) -> None:
    """Merges what the splits of one head of one row found.

    A row with one split comes out as `decode_split` alone would have written it:
    the factors are then ones, and nothing but zeros is added.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    start = tl.load(query_starts + row)
    if tl.load(query_starts + row + 1) - start != 1:
        return
    used_count = (tl.load(context_lengths + row) + split_size - 1) // split_size
    columns = tl.arange(0, size)
    is_column = columns < head_dim
    first_part = (row * tl.num_programs(1) + head) * split_count
    # One-element tiles, because what a loop carries must not change between scalar and tile.
    peak = tl.full((1,), float("-inf"), tl.float32)
    mass = tl.zeros((1,), tl.float32)
    total = tl.zeros((size,), tl.float32)
    for begin in range(0, used_count, merge_tile):
        splits = begin + tl.arange(0, merge_tile)
        is_used = splits < used_count
        parts = first_part + splits
        split_peaks = tl.load(peaks + parts, mask=is_used, other=float("-inf"))
        split_masses = tl.load(masses + parts, mask=is_used, other=0.0)
        values_mask = is_used[:, None] & is_column[None, :]
        values = tl.load(found + parts[:, None] * head_dim + columns[None, :], mask=values_mask, other=0.0)
        new_peak = tl.maximum(peak, tl.max(split_peaks, axis=0))
        factors = tl.exp2(split_peaks - new_peak)
        shrink = tl.exp2(peak - new_peak)
        mass = mass * shrink + tl.sum(split_masses * factors, axis=0)
        total = total * shrink + tl.sum(values * factors[:, None], axis=0)
        peak = new_peak
    place = (start.to(tl.int64) * tl.num_programs(1) + head) * head_dim
    tl.store(output + place + columns, (total / mass).to(output.dtype.element_ty), mask=is_column)
