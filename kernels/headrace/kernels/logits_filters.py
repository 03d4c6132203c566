"""Filters that few rows use, as masks in plain torch on any device: what they drop is -inf before `Kernels.sample`."""

from collections.abc import Iterator

import torch

from headrace.kernels.reference_sampling import filter_weights, keep_down_to

_TYPICAL_GUESS = 1024
"""How many of the most typical tokens are looked at before all of them are sorted."""

_LEAST = -1e4
"""A log-probability of no probability at all."""


def row_slices(row_count: int, device: torch.device) -> Iterator[slice]:
    """Yields the rows in groups that are best worked on together.

    On a CPU that is one: a row stays in the cache from one operation to the next,
    and a batch does not. Elsewhere it is all of them.
    """
    size = 1 if device.type == "cpu" else max(row_count, 1)
    return (slice(first, first + size) for first in range(0, row_count, size))


def is_at_least(scores: torch.Tensor, temperature: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the tokens that are at least `min_p` times as likely as the likeliest.

    Nguyen, Baker, Neo, Roush, Kirsch and Shwartz-Ziv, "Turning Up the Heat:
    Min-p Sampling for Creative and Coherent LLM Outputs" (ICLR 2025).

    Args:
        scores: [row, vocabulary] float32, at least one per row finite.
        temperature: [row] float32, > 0.
        min_p: [row] float32, in [0, 1].

    Returns:
        [row, vocabulary] bool.
    """
    # A ratio of probabilities is a difference of scores, so there is nothing to normalise.
    return scores >= scores.amax(dim=-1, keepdim=True) + (temperature * min_p.log())[:, None]


def is_typical(scores: torch.Tensor, temperature: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the fewest tokens that reach the mass `typical_p`, the most typical first.

    A token is the more typical, the closer its information, -log p, is to the
    entropy of the distribution; the lowest ids come first among equals. Meister,
    Pimentel, Wiher and Cotterell, "Locally Typical Sampling" (TACL 2023).

    Args:
        scores: [row, vocabulary] float32, at least one per row finite.
        temperature: [row] float32, > 0.
        typical_p: [row] float32, in (0, 1].

    Returns:
        [row, vocabulary] bool.
    """
    log_probabilities = (scores / temperature[:, None]).log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    # Dropped tokens have no probability, and 0 * -inf must not spoil the sum.
    entropy = -(probabilities * log_probabilities.clamp(min=_LEAST)).sum(dim=-1, keepdim=True)
    closeness = -(log_probabilities + entropy).abs_()
    return _keep_until(closeness, probabilities, typical_p)


def filtered_scores(
    scores: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    token_ids: torch.Tensor,
) -> torch.Tensor:
    """Returns the scores of the distribution that `Kernels.sample` draws from.

    Args:
        scores: [row, vocabulary] float32.
        temperature: [row] float32, >= 0; a row at 0 stays as it is, as there is nothing to draw from it.
        top_k: [row] int64; 0 keeps all.
        top_p: [row] float32, in (0, 1].
        token_ids: [row] int64, the tokens that were drawn. They are kept: versions that
            differ in their rounding may not agree on the last token that is.

    Returns:
        [row, vocabulary] float32: divided by temperature, and -inf where top-k or top-p drops the token.
    """
    result = scores.clone()
    drawn = (temperature > 0).nonzero().squeeze(1)
    for part in row_slices(len(drawn), scores.device):
        rows = drawn[part]
        scaled = (scores[rows] - scores[rows].amax(dim=-1, keepdim=True)) / temperature[rows, None]
        weights = scaled.exp()
        kept = filter_weights(scores[rows], weights.clone(), top_k[rows], top_p[rows])
        dropped = (weights > 0) & (kept == 0)
        dropped.scatter_(1, token_ids[rows, None], value=False)
        result[rows] = scaled.masked_fill_(dropped, -torch.inf)
    return result


def _keep_until(closeness: torch.Tensor, probabilities: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the fewest of the closest tokens that reach a share of each row's mass."""
    vocabulary = closeness.shape[1]
    guess = min(_TYPICAL_GUESS, vocabulary)
    wanted = (probabilities.sum(dim=-1, dtype=torch.float64) * share)[:, None]
    closest, order = closeness.topk(guess, dim=-1)
    counts = _count_until(order, probabilities, wanted)
    thresholds = closest.gather(1, (counts - 1).clamp(max=guess - 1)[:, None])
    open_rows = (counts > guess).nonzero().squeeze(1)
    if open_rows.shape[0] > 0:
        closest, order = closeness[open_rows].sort(dim=-1, descending=True)
        found = _count_until(order, probabilities[open_rows], wanted[open_rows]).clamp(max=vocabulary)
        counts[open_rows] = found
        thresholds[open_rows] = closest.gather(1, (found - 1)[:, None])
    return keep_down_to(closeness, thresholds, counts)


def _count_until(order: torch.Tensor, probabilities: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    reached = probabilities.gather(1, order).cumsum(dim=-1, dtype=torch.float64)
    return (reached < wanted).sum(dim=-1) + 1
