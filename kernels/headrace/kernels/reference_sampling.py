"""Drawing tokens and log-probabilities in plain torch.

A draw is one uniform number looked up in the cumulated probabilities. NOTE: the
alternative, adding Gumbel noise to every logit and taking the largest, needs a
random number for each token of the vocabulary; this needs one per row and a
running sum, and that sum, in token order, needs no sort.
"""

import torch

from headrace.kernels import philox
from headrace.kernels.token_logprobs import TokenLogprobs

_NUCLEUS_GUESS = 1024
"""How many of the likeliest tokens are looked at for top-p before all of them are sorted."""


_WORD_BITS = 32
"""Tokens that one word of a mask tells of."""


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
    token_ids = logits.argmax(dim=-1)
    drawn = (temperature > 0).nonzero().squeeze(1)
    if drawn.shape[0] == 0:
        return token_ids
    scores = logits[drawn].to(torch.float32)
    # Shifted before it is divided, so that no temperature makes an infinity.
    weights = ((scores - scores.amax(dim=-1, keepdim=True)) / temperature[drawn, None]).exp()
    weights = filter_weights(scores, weights, top_k[drawn], top_p[drawn])
    token_ids[drawn] = _draw(weights, philox.uniform(seeds[drawn], positions[drawn]))
    return token_ids


def keep_allowed(logits: torch.Tensor, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Returns [mask] the largest logit that is left; see Kernels.keep_allowed."""
    shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
    bits = (allowed[:, :, None] >> shifts) & 1
    is_barred = bits.flatten(1)[:, : logits.shape[1]] == 0
    kept = logits[rows].masked_fill_(is_barred, -torch.inf)
    logits[rows] = kept
    return kept.amax(dim=-1).to(torch.float32)


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor, top_count: int) -> TokenLogprobs:
    """Returns the log-probabilities of `token_ids`; see Kernels.logprobs."""
    scores = logits.to(torch.float32)
    normaliser = scores.logsumexp(dim=-1, keepdim=True)
    chosen = scores.gather(1, token_ids[:, None])
    counts = torch.full_like(token_ids, top_count)
    top_ids = keep_likeliest(scores, counts).nonzero()[:, 1].view(token_ids.shape[0], top_count)
    top_scores, order = scores.gather(1, top_ids).sort(dim=-1, descending=True, stable=True)
    return TokenLogprobs(
        logprobs=(chosen - normaliser).squeeze(1),
        ranks=(scores > chosen).sum(dim=-1) + 1,
        top_token_ids=top_ids.gather(1, order),
        top_logprobs=top_scores - normaliser,
    )


def filter_weights(
    scores: torch.Tensor, weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Returns the weights with zeros where top-k, or top-p over what that keeps, drops the token.

    Args:
        scores: [row, vocabulary] float32, which decide what is likelier for top-k.
        weights: [row, vocabulary] float32, probabilities up to a factor; overwritten.
        top_k: [row] int64; 0 keeps all.
        top_p: [row] float32, in (0, 1].

    Returns:
        [row, vocabulary] float32.
    """
    return _filter_top_p(_filter_top_k(scores, weights, top_k), top_p)


def keep_likeliest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the `counts` highest scores of each row, the lowest ids among equals.

    Args:
        scores: [row, vocabulary] float32.
        counts: [row] int64, in [0, vocabulary].

    Returns:
        [row, vocabulary] bool.
    """
    if scores.shape[0] == 0 or (most := int(counts.max())) == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    highest = scores.topk(most, dim=-1).values
    return keep_down_to(scores, highest.gather(1, (counts - 1).clamp(min=0)[:, None]), counts)


def keep_down_to(scores: torch.Tensor, thresholds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns what `keep_likeliest` does, once it is known where that ends.

    Args:
        scores: [row, vocabulary] float32.
        thresholds: [row, 1] float32, the lowest of the `counts` highest scores.
        counts: [row] int64, in [0, vocabulary].

    Returns:
        [row, vocabulary] bool.
    """
    kept = scores >= thresholds
    # Few rows have more tokens at the threshold than there is room for; only they need an order.
    crowded = (kept.count_nonzero(dim=-1) > counts).nonzero().squeeze(1)
    if crowded.shape[0] > 0:
        above = scores[crowded] > thresholds[crowded]
        equal = scores[crowded] == thresholds[crowded]
        room = counts[crowded, None] - above.count_nonzero(dim=-1)[:, None]
        kept[crowded] = (above | (equal & (equal.cumsum(dim=-1) <= room))) & (counts[crowded, None] > 0)
    return kept


def _filter_top_k(scores: torch.Tensor, weights: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    rows = ((top_k > 0) & (top_k < scores.shape[1])).nonzero().squeeze(1)
    if rows.shape[0] > 0:
        weights[rows] = weights[rows].masked_fill(~keep_likeliest(scores[rows], top_k[rows]), 0.0)
    return weights


def _filter_top_p(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    rows = (top_p < 1).nonzero().squeeze(1)
    if rows.shape[0] > 0:
        filtered = weights[rows]
        weights[rows] = filtered.masked_fill(~_nucleus(filtered, top_p[rows]), 0.0)
    return weights


def _nucleus(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Returns a mask of the fewest of the likeliest tokens that reach the share `top_p` of each row's mass."""
    wanted = (weights.sum(dim=-1, dtype=torch.float64) * top_p)[:, None]
    guess = min(_NUCLEUS_GUESS, weights.shape[1])
    highest = weights.topk(guess, dim=-1).values
    sizes = (highest.cumsum(dim=-1, dtype=torch.float64) < wanted).sum(dim=-1) + 1
    thresholds = highest.gather(1, (sizes - 1).clamp(max=guess - 1)[:, None])
    open_rows = (sizes > guess).nonzero().squeeze(1)
    if open_rows.shape[0] > 0:
        ordered = weights[open_rows].sort(dim=-1, descending=True).values
        found = (ordered.cumsum(dim=-1, dtype=torch.float64) < wanted[open_rows]).sum(dim=-1) + 1
        sizes[open_rows] = found = found.clamp(max=weights.shape[1])
        thresholds[open_rows] = ordered.gather(1, (found - 1)[:, None])
    return keep_down_to(weights, thresholds, sizes)


def _draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulated[:, -1]
    # Rounding must not lift the target to the total, past the last token that has any weight.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, target[:, None], right=True).squeeze(1)
