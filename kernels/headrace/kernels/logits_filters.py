"""Filters that few rows use, as masks in plain torch on any device: what they drop is -inf before `Kernels.sample`."""

import torch

from headrace.kernels.reference_sampling import filter_weights, keep_likeliest

_TYPICAL_GUESS = 1024
"""How many of the most typical tokens are looked at before all of them are sorted."""


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
    shifted = scores - scores.amax(dim=-1, keepdim=True)
    log_probabilities = (shifted / temperature[:, None]).log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    closeness = -(log_probabilities + entropy).abs()
    return keep_likeliest(closeness, _typical_counts(closeness, probabilities, typical_p))


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
    drawn = (temperature > 0).nonzero().squeeze(1)
    result = scores.clone()
    if drawn.shape[0] == 0:
        return result
    scaled = (scores[drawn] - scores[drawn].amax(dim=-1, keepdim=True)) / temperature[drawn, None]
    weights = scaled.exp()
    kept = filter_weights(scores[drawn], weights.clone(), top_k[drawn], top_p[drawn])
    dropped = (weights > 0) & (kept == 0)
    dropped.scatter_(1, token_ids[drawn, None], value=False)
    result[drawn] = scaled.masked_fill(dropped, -torch.inf)
    return result


def _typical_counts(closeness: torch.Tensor, probabilities: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Returns how many of the most typical tokens reach the share `typical_p` of each row's mass."""
    vocabulary = closeness.shape[1]
    guess = min(_TYPICAL_GUESS, vocabulary)
    counts = _count_until(closeness.topk(guess, dim=-1).indices, probabilities, typical_p)
    open_rows = (counts > guess).nonzero().squeeze(1)
    if open_rows.shape[0] > 0:
        order = closeness[open_rows].sort(dim=-1, descending=True).indices
        counts[open_rows] = _count_until(order, probabilities[open_rows], typical_p[open_rows])
    return counts.clamp(max=vocabulary)


def _count_until(order: torch.Tensor, probabilities: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    reached = probabilities.gather(1, order).cumsum(dim=-1, dtype=torch.float64)
    wanted = probabilities.sum(dim=-1, dtype=torch.float64) * share
    return (reached < wanted[:, None]).sum(dim=-1) + 1
