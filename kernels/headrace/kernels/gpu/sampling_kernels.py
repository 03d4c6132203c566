"""What each program of the sampler does; headrace.kernels.gpu.sampling launches them.

Strides count elements. `size` is the chunk of a vocabulary that a program looks
at, `chunk_size` a power of two that holds the number of chunks.
"""

# ruff: noqa: PLR0917 - Triton's functions take pointers and strides by position

import triton.language as tl

from headrace.kernels.gpu.jit import jit


@jit
def chunk_peaks(
    logits: tl.tensor,
    peaks: tl.tensor,
    token_ids: tl.tensor,
    row_stride: tl.tensor,
    vocabulary: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Writes the largest logit of one chunk, or NaN, and its lowest token, to [row, chunk]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * size + tl.arange(0, size)
    scores = tl.load(logits + row * row_stride + tokens, mask=tokens < vocabulary, other=float("-inf")).to(tl.float32)
    peak, token = _first_peak(scores)
    tl.store(peaks + row * tl.num_programs(1) + chunk, peak)
    tl.store(token_ids + row * tl.num_programs(1) + chunk, (chunk * size + token).to(tl.int64))


@jit
def row_peaks(
    chunk_peaks: tl.tensor,
    chunk_token_ids: tl.tensor,
    peaks: tl.tensor,
    token_ids: tl.tensor,
    chunk_count: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Writes the largest of a row's chunks, or NaN, and its lowest token, to [row]."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, size)
    found = tl.load(chunk_peaks + row * chunk_count + chunks, mask=chunks < chunk_count, other=float("-inf"))
    peak, chunk = _first_peak(found)
    tl.store(peaks + row, peak)
    tl.store(token_ids + row, tl.load(chunk_token_ids + row * chunk_count + chunk))


@jit
def mask_chunk(
    logits: tl.tensor,
    rows: tl.tensor,
    allowed: tl.tensor,
    peaks: tl.tensor,
    row_stride: tl.tensor,
    token_stride: tl.tensor,
    mask_stride: tl.tensor,
    word_stride: tl.tensor,
    vocabulary: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Writes -infinity to the tokens of one chunk that a mask bars, and the largest other logit to [mask, chunk]."""
    mask = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = (chunk * size + tl.arange(0, size)).to(tl.int64)
    is_token = tokens < vocabulary
    words = tl.load(allowed + mask * mask_stride + tokens // 32 * word_stride, mask=is_token, other=0)
    is_allowed = ((words >> (tokens % 32).to(tl.int32)) & 1) != 0
    places = logits + tl.load(rows + mask) * row_stride + tokens * token_stride
    scores = tl.load(places, mask=is_token & is_allowed, other=float("-inf"))
    tl.store(places, scores, mask=is_token & (is_allowed == 0))
    tl.store(peaks + mask * tl.num_programs(1) + chunk, tl.max(scores.to(tl.float32), axis=0))


@jit
def _first_peak(scores: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Returns the largest of [size] scores and its first index; NaN and some index if any score is NaN."""
    is_broken = scores != scores  # noqa: PLR0124 - only a NaN differs from itself
    whole = tl.where(is_broken, float("-inf"), scores)
    peak, index = tl.max(whole, axis=0, return_indices=True, return_indices_tie_break_left=True)
    broken_count = tl.sum(is_broken.to(tl.int32), axis=0)
    return tl.where(broken_count > 0, float("nan"), peak), index


@jit
def _weights(
    row_logits: tl.tensor, tokens: tl.tensor, vocabulary: tl.tensor, peak: tl.tensor, temperature: tl.tensor
) -> tl.tensor:
    """Returns probabilities without their normaliser: float32, rounded as the reference does, then widened."""
    scores = tl.load(row_logits + tokens, mask=tokens < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.exp(tl.div_rn(scores - peak, temperature)).to(tl.float64)


@jit
def chunk_masses(
    logits: tl.tensor,
    peaks: tl.tensor,
    temperatures: tl.tensor,
    masses: tl.tensor,
    row_stride: tl.tensor,
    vocabulary: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Writes the weight of one chunk to [row, chunk]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * size + tl.arange(0, size)
    peak, temperature = tl.load(peaks + row), tl.load(temperatures + row)
    weights = _weights(logits + row * row_stride, tokens, vocabulary, peak, temperature)
    tl.store(masses + row * tl.num_programs(1) + chunk, tl.sum(weights, axis=0))


@jit
def chunk_logprob_sums(
    logits: tl.tensor,
    peaks: tl.tensor,
    chosen: tl.tensor,
    masses: tl.tensor,
    likelier_counts: tl.tensor,
    row_stride: tl.tensor,
    vocabulary: tl.tensor,
    size: tl.constexpr,
) -> None:
    """Writes one chunk's weight at temperature 1, and how many logits beat the chosen one, to [row, chunk]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * size + tl.arange(0, size)
    scores = tl.load(logits + row * row_stride + tokens, mask=tokens < vocabulary, other=float("-inf")).to(tl.float32)
    place = row * tl.num_programs(1) + chunk
    tl.store(masses + place, tl.sum(tl.exp(scores - tl.load(peaks + row)).to(tl.float64), axis=0))
    tl.store(likelier_counts + place, tl.sum((scores > tl.load(chosen + row)).to(tl.int64), axis=0))


@jit
def _uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Returns the float64 in [0, 1) that headrace.kernels.philox gives for a seed and a position, both int64."""
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low & 0
    word0, word1, _, _ = tl.philox(seed, low, high, zero, zero)
    bits = ((word0.to(tl.uint64) << 32) | word1.to(tl.uint64)) >> 11
    return bits.to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@jit
def _first_past(masses: tl.tensor, target: tl.tensor, before: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """Returns the first index of [size] at which the cumulated mass is past the target.

    Only an index with mass is returned: the tree in which a GPU cumulates need
    not give equal sums on both sides of a zero. The last such one is for a
    target that rounding lifted to the total; 0 if there is no mass at all.
    """
    places = tl.arange(0, size)
    has_mass = masses > 0
    is_past = has_mass & (before + tl.cumsum(masses, axis=0) > target)
    first = tl.min(tl.where(is_past, places, size), axis=0)
    last = tl.max(tl.where(has_mass, places, 0), axis=0)
    return tl.where(first < size, first, last)


@jit
def draw(
    logits: tl.tensor,
    peaks: tl.tensor,
    temperatures: tl.tensor,
    masses: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    token_ids: tl.tensor,
    row_stride: tl.tensor,
    vocabulary: tl.tensor,
    chunk_count: tl.tensor,
    size: tl.constexpr,
    chunk_size: tl.constexpr,
) -> None:
    """Writes the drawn token of one row to [row]."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, chunk_size)
    chunk_weights = tl.load(masses + row * chunk_count + chunks, mask=chunks < chunk_count, other=0.0)
    target = _uniform(tl.load(seeds + row), tl.load(positions + row)) * tl.sum(chunk_weights, axis=0)
    chunk = _first_past(chunk_weights, target, 0.0, chunk_size)
    before = tl.sum(tl.where(chunks < chunk, chunk_weights, 0.0), axis=0)
    tokens = chunk * size + tl.arange(0, size)
    peak, temperature = tl.load(peaks + row), tl.load(temperatures + row)
    weights = _weights(logits + row * row_stride, tokens, vocabulary, peak, temperature)
    tl.store(token_ids + row, (chunk * size + _first_past(weights, target, before, size)).to(tl.int64))
