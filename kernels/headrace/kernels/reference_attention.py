"""Paged attention in plain torch, over rows grouped by shape."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from headrace.kernels.attention_batch import AttentionBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Rows that bring equally many tokens and whose contexts are alike in length."""

    token_indices: torch.Tensor
    """[row, query] int64: their tokens in the batch."""
    block_indices: torch.Tensor
    """[row * block] int64: their blocks, padded to the longest with any block."""
    visible: torch.Tensor
    """[1, row, query, block * block_size] bool: which keys each token attends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttentionBatch(AttentionBatch):
    """A batch whose rows are grouped, so that each group is one padded product."""

    groups: tuple[RowGroup, ...]


def group_rows(
    block_tables: torch.Tensor, query_starts: torch.Tensor, context_lengths: torch.Tensor, block_size: int
) -> GroupedAttentionBatch:
    """Groups rows so that padding at most doubles the keys that are read."""
    starts: list[int] = query_starts.tolist()
    contexts: list[int] = context_lengths.tolist()
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, context in enumerate(contexts):
        query_length = starts[row + 1] - starts[row]
        members[query_length, (-(-context // block_size)).bit_length()].append(row)
    groups = tuple(
        _group(block_tables, query_starts, context_lengths, rows=rows, query_length=key[0], block_size=block_size)
        for key, rows in members.items()
    )
    return GroupedAttentionBatch(
        block_tables=block_tables, query_starts=query_starts, context_lengths=context_lengths, groups=groups
    )


def _group(
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lengths: torch.Tensor,
    *,
    rows: list[int],
    query_length: int,
    block_size: int,
) -> RowGroup:
    index = torch.tensor(rows, device=block_tables.device)
    contexts = context_lengths[index].to(torch.int64)
    block_count = -(-int(contexts.max()) // block_size)
    block_indices = block_tables[index, :block_count].to(torch.int64)
    used = torch.arange(block_count, device=index.device) * block_size < contexts[:, None]
    query = torch.arange(query_length, device=index.device)
    last_visible = (contexts - query_length)[:, None] + query
    keys = torch.arange(block_count * block_size, device=index.device)
    return RowGroup(
        token_indices=query_starts[index].to(torch.int64)[:, None] + query,
        block_indices=torch.where(used, block_indices, 0).flatten(),
        visible=(keys <= last_visible[:, :, None])[None],
    )


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: GroupedAttentionBatch,
    *,
    scale: float,
) -> torch.Tensor:
    """Returns [token, head, head_dim]."""
    output = torch.empty_like(query)
    for group in batch.groups:
        output[group.token_indices] = _attend_group(query[group.token_indices], key_cache, value_cache, group, scale)
    return output


def _attend_group(
    query: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, group: RowGroup, scale: float
) -> torch.Tensor:
    """Takes and returns [row, query, head, head_dim]."""
    row_count, query_length, head_count, head_dim = query.shape
    kv_head_count = key_cache.shape[1]
    keys = _gather(key_cache, group.block_indices, row_count)
    values = _gather(value_cache, group.block_indices, row_count)
    grouped = query.view(row_count, query_length, kv_head_count, head_count // kv_head_count, head_dim)
    if query_length == 1:
        # The query heads of one key-value head read the same keys: they take the place of the query tokens.
        stacked = grouped.squeeze(1).transpose(0, 1)
        result = scaled_dot_product_attention(stacked, keys, values, attn_mask=group.visible, scale=scale)
        return result.transpose(0, 1).reshape(query.shape)
    results = [
        scaled_dot_product_attention(part.permute(2, 0, 1, 3), keys, values, attn_mask=group.visible, scale=scale)
        for part in grouped.unbind(3)
    ]
    return torch.stack(results, dim=3).permute(1, 2, 0, 3, 4).reshape(query.shape)


def _gather(cache: torch.Tensor, block_indices: torch.Tensor, row_count: int) -> torch.Tensor:
    """Returns [kv_head, row, key, head_dim]."""
    blocks = cache.transpose(0, 1).index_select(1, block_indices)
    return blocks.view(blocks.shape[0], row_count, -1, blocks.shape[3])
