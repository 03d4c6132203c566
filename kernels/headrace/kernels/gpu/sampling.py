"""Drawing tokens and log-probabilities.

A vocabulary is cut into chunks, a program each, so that one row already
occupies a device. A draw takes two passes over the logits: the mass of each
chunk, then the one chunk in which the cumulated mass passes the target. The
random number is that of headrace.kernels.philox, bit for bit, and masses are
summed in float64, so a draw differs from the reference's only where the target
lies within the last bits of a token's edge.

Top-k and top-p are torch: a sort per row that wants them. NOTE: searching the
threshold without a sort is faster, and is where to go on once there is a
GPU to measure on.
"""

import torch
import triton

from headrace.kernels.gpu.jit import launch, next_power_of_two, rows_of
from headrace.kernels.gpu.sampling_kernels import (
    chunk_logprob_sums,
    chunk_masses,
    chunk_peaks,
    draw,
    mask_chunk,
    row_peaks,
)
from headrace.kernels.likeliest_tokens import LikeliestTokens
from headrace.kernels.reference_sampling import keep_likeliest
from headrace.kernels.token_logprobs import TokenLogprobs

_CHUNK_SIZE = 4096
"""Tokens that one program looks at."""


def likeliest(logits: torch.Tensor) -> LikeliestTokens:
    """Takes [row, vocabulary]; see Kernels.likeliest."""
    logits = rows_of(logits)
    row_count, vocabulary = logits.shape
    chunk_count = triton.cdiv(vocabulary, _CHUNK_SIZE)
    peaks = torch.empty((row_count, chunk_count), dtype=torch.float32, device=logits.device)
    token_ids = torch.empty((row_count, chunk_count), dtype=torch.int64, device=logits.device)
    grid = (row_count, chunk_count)
    launch(chunk_peaks, grid, logits, peaks, token_ids, logits.stride(0), vocabulary, size=_CHUNK_SIZE)
    row_peak = torch.empty((row_count,), dtype=torch.float32, device=logits.device)
    row_token_ids = torch.empty((row_count,), dtype=torch.int64, device=logits.device)
    found = (peaks, token_ids, row_peak, row_token_ids)
    launch(row_peaks, (row_count,), *found, chunk_count, size=next_power_of_two(chunk_count))
    return LikeliestTokens(token_ids=row_token_ids, logits=row_peak)


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Returns one token per row, [row] int64; see Kernels.sample."""
    best = likeliest(logits)
    filtered = ((temperature > 0) & ((top_k > 0) | (top_p < 1))).nonzero().squeeze(1)
    if filtered.shape[0] > 0:
        logits = logits.to(torch.float32, copy=True)
        logits[filtered] = _exclude(logits[filtered], temperature[filtered], top_k[filtered], top_p[filtered])
    logits = rows_of(logits)
    row_count, vocabulary = logits.shape
    chunk_count = triton.cdiv(vocabulary, _CHUNK_SIZE)
    is_greedy = temperature == 0
    # Greedy rows draw along, from a distribution nobody asked for, rather than be picked out on the host.
    divisor = torch.where(is_greedy, 1.0, temperature)
    masses = torch.empty((row_count, chunk_count), dtype=torch.float64, device=logits.device)
    arguments = (logits, best.logits, divisor, masses, logits.stride(0), vocabulary)
    launch(chunk_masses, (row_count, chunk_count), *arguments, size=_CHUNK_SIZE)
    drawn = torch.empty_like(best.token_ids)
    columns = (best.logits, divisor, masses, seeds.contiguous(), positions.contiguous())
    sizes = {"size": _CHUNK_SIZE, "chunk_size": next_power_of_two(chunk_count)}
    launch(draw, (row_count,), logits, *columns, drawn, logits.stride(0), vocabulary, chunk_count, **sizes)
    return torch.where(is_greedy, best.token_ids, drawn)


def keep_allowed(logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Returns [mask] the largest logit that is left; see Kernels.keep_allowed."""
    vocabulary = logits.shape[1]
    chunk_count = triton.cdiv(vocabulary, _CHUNK_SIZE)
    peaks = torch.empty((rows.shape[0], chunk_count), dtype=torch.float32, device=logits.device)
    if rows.shape[0] > 0:
        strides = (*logits.stride(), *allowed.stride())
        launch(mask_chunk, peaks.shape, logits, rows, allowed, peaks, *strides, vocabulary, size=_CHUNK_SIZE)
    return peaks.amax(dim=-1)


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
    """Returns the log-probabilities of `token_ids`, [row], and of the likeliest; see Kernels.logprobs."""
    logits = rows_of(logits)
    row_count, vocabulary = logits.shape
    chunk_count = triton.cdiv(vocabulary, _CHUNK_SIZE)
    best = likeliest(logits)
    chosen = logits.gather(1, token_ids[:, None]).to(torch.float32)
    masses = torch.empty((row_count, chunk_count), dtype=torch.float64, device=logits.device)
    likelier_counts = torch.empty((row_count, chunk_count), dtype=torch.int64, device=logits.device)
    arguments = (logits, best.logits, chosen, masses, likelier_counts, logits.stride(0), vocabulary)
    launch(chunk_logprob_sums, (row_count, chunk_count), *arguments, size=_CHUNK_SIZE)
    normaliser = best.logits[:, None] + masses.sum(dim=-1, keepdim=True).log().to(torch.float32)
    scores = logits.to(torch.float32)
    top_ids = keep_likeliest(scores, torch.full_like(token_ids, top_count)).nonzero()[:, 1].view(row_count, top_count)
    top_scores, order = scores.gather(1, top_ids).sort(dim=-1, descending=True, stable=True)
    return TokenLogprobs(
        logprobs=(chosen - normaliser).squeeze(1),
        ranks=likelier_counts.sum(dim=-1) + 1,
        top_token_ids=top_ids.gather(1, order),
        top_logprobs=top_scores - normaliser,
    )


def _exclude(scores: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Returns float32 [row, vocabulary] scores, -inf where top-k or top-p drops the token."""
    vocabulary = scores.shape[1]
    # Stable, so that the lowest id comes first among equals.
    ordered, token_ids = scores.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocabulary, device=scores.device)
    kept = ranks < torch.where(top_k > 0, top_k, vocabulary)[:, None]
    weights = ((ordered - ordered[:, :1]) / temperature[:, None]).exp().masked_fill(~kept, 0.0)
    reached = weights.cumsum(dim=-1, dtype=torch.float64)
    wanted = weights.sum(dim=-1, keepdim=True, dtype=torch.float64) * top_p[:, None]
    nucleus_sizes = (reached < wanted).sum(dim=-1, keepdim=True) + 1
    kept &= (ranks < nucleus_sizes) | (top_p == 1)[:, None]
    is_kept = torch.empty_like(kept).scatter_(1, token_ids, kept)
    return scores.masked_fill(~is_kept, -torch.inf)
