"""Paged attention in plain torch, over rows grouped by shape."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.kernels.attention_batch import AttentionBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Rows that bring equally many tokens and whose contexts are alike in length."""

    token_indices: torch.Tensor
    """[row, query] int64: their tokens in the batch."""
    block_ids: torch.Tensor
    """[row, block] int64: their blocks, padded to the longest row."""
    visible: torch.Tensor
    """[row, 1, query, block * block_size] bool: which keys each token attends to."""
    hidden: tuple[torch.Tensor, torch.Tensor]
    """Indices (row, key) of the keys that lie past a row's context."""


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
        _group(
            block_tables[rows], query_starts[rows], context_lengths[rows], query_length=key[0], block_size=block_size
        )
        for key, rows in members.items()
    )
    return GroupedAttentionBatch(
        block_tables=block_tables, query_starts=query_starts, context_lengths=context_lengths, groups=groups
    )


def _group(
    block_tables: torch.Tensor, starts: torch.Tensor, contexts: torch.Tensor, *, query_length: int, block_size: int
) -> RowGroup:
    block_count = -(-int(contexts.max()) // block_size)
    block_ids = block_tables[:, :block_count].to(torch.int64)
    first_tokens = torch.arange(block_count, device=contexts.device) * block_size
    queries = torch.arange(query_length, device=contexts.device)
    keys = torch.arange(block_count * block_size, device=contexts.device)
    last_visible = (contexts - query_length)[:, None] + queries
    hidden_rows, hidden_keys = (keys >= contexts[:, None]).nonzero(as_tuple=True)
    return RowGroup(
        token_indices=starts.to(torch.int64)[:, None] + queries,
        block_ids=torch.where(first_tokens < contexts[:, None], block_ids, 0),
        visible=(keys <= last_visible[:, :, None])[:, None],
        hidden=(hidden_rows, hidden_keys),
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
        keys, values = _gather(key_cache, group), _gather(value_cache, group)
        output[group.token_indices] = _attend_group(query[group.token_indices], keys, values, group.visible, scale)
    return output


def _attend_group(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Takes and returns [row, query, head, head_dim]; keys and values are [row, kv_head, key, head_dim]."""
    row_count, query_length, head_count, head_dim = query.shape
    if query_length == 1:
        # The query heads of a key-value head read the same keys, so they can stand where query tokens would.
        folded = query.view(row_count, keys.shape[1], head_count // keys.shape[1], head_dim)
        result = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=visible, scale=scale)
        return result.reshape(query.shape)
    result = functional.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, attn_mask=visible, scale=scale, enable_gqa=True
    )
    return result.transpose(1, 2)


def _gather(cache: torch.Tensor, group: RowGroup) -> torch.Tensor:
    """Returns [row, kv_head, key, head_dim], zero where the group hides it."""
    _, head_count, block_size, head_dim = cache.shape
    heads = torch.arange(head_count, device=cache.device)
    runs = group.block_ids[:, None, :] * head_count + heads[:, None]
    # `embedding` copies long rows of a two-dimensional tensor several times faster than indexing does.
    gathered = functional.embedding(runs, cache.view(-1, block_size * head_dim))
    gathered = gathered.view(runs.shape[0], head_count, -1, head_dim)
    # A mask cannot hide a NaN that somebody left there: it has to go.
    rows, keys = group.hidden
    gathered[rows, :, keys] = 0
    return gathered
