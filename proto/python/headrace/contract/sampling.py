"""How a token is drawn, and when a sequence ends: as asked, and with every default resolved."""

from dataclasses import dataclass, field

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPenalty:
    """Raises the end-of-sequence logit after `start_index` generated tokens."""

    start_index: int
    """Generated tokens before it starts; >= 0."""
    decay_factor: float
    """Growth per token; in [1, 10]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What a request asks for. None means the model's default; zero means zero."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])
    banned_words: tuple[str, ...] = ()
    length_penalty: LengthPenalty | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BannedText:
    """Texts that a completion must not contain, as an automaton over token ids.

    A state stands for the beginning of a banned text that the completion ends
    with. Several states are active at once, none before the first token. A
    token makes active what it starts, and what it moves an active state to.
    """

    state_count: int
    """States are [0, state_count)."""
    token_ids: tuple[int, ...] = ()
    """Tokens that contain a banned text and are never drawn."""
    neutral_token_ids: tuple[int, ...] = ()
    """Tokens without a text, which leave the active states as they are."""
    start_token_ids: tuple[int, ...] = ()
    """Tokens that end with the beginning of a banned text, ascending,"""
    start_states: tuple[int, ...] = ()
    """and the state that each makes active; as long."""
    move_states: tuple[int, ...] = ()
    """States that a token moves on,"""
    move_token_ids: tuple[int, ...] = ()
    """the token,"""
    move_next_states: tuple[int, ...] = ()
    """and the state after it; all as long."""
    end_states: tuple[int, ...] = ()
    """States, ascending,"""
    end_token_ids: tuple[int, ...] = ()
    """and tokens that are not drawn while the state is active, since they complete its text; as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """Makes the tokens of a secret list likelier; see headrace.contract.watermark."""

    key: int
    """In [1, 2**64)."""
    gamma: float
    """Share of the vocabulary that is favoured; in (0, 1)."""
    delta: float
    """Added to its logits; positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What the engine does. The defaults change nothing about the model's distribution."""

    temperature: float = 1.0
    """0 is greedy: the most likely token, the lowest id among equals."""
    top_k: int = 0
    """Keep the k likeliest; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest likeliest set with at least this mass; 1 keeps all."""
    min_p: float = 0.0
    """Drop what is less likely than this share of the likeliest; 0 keeps all."""
    typical_p: float = 1.0
    """Locally typical sampling; 1 keeps all."""
    seed: int = 0
    """In [0, 2**64). A draw depends on (seed, position of the drawn token) alone."""
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, addend), ascending ids."""
    length_penalty: LengthPenalty | None = None
    banned_text: BannedText | None = None
    """Texts that must not be generated."""
    watermark: Watermark | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature == 0.0

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are dropped, by what the others come to."""
        is_whole = self.top_k == 0 and self.top_p == 1.0 and self.min_p == 0.0 and self.typical_p == 1.0
        return not (self.is_greedy or is_whole)

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits by their number."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def needs_processing(self) -> bool:
        """Whether anything but temperature, top-k and top-p changes the distribution."""
        return (
            self.has_penalties
            or self.min_p > 0.0
            or self.typical_p < 1.0
            or bool(self.logit_bias)
            or self.length_penalty is not None
            or self.banned_text is not None
            or self.watermark is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingOptions:
    """What a request asks for. None means the model's default."""

    max_new_token_count: int | None = None
    min_new_token_count: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end_of_sequence: bool | None = None
    include_stop_sequence: bool | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStopRules:
    """The endings that a shard applies by itself, since they need only token ids."""

    token_limit: int
    """The row ends when it holds this many tokens, prompt included."""
    min_new_token_count: int = 0
    """No ending token is drawn before this many were generated."""
    end_of_sequence_token_ids: tuple[int, ...] = ()
    """Empty when end-of-sequence is ignored."""
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStopRules:
    """The endings that the router applies, since they need text or time."""

    stop_sequences: tuple[str, ...] = ()
    include_stop_sequence: bool = False
    time_limit_s: float | None = None
    """Counted from admission."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobOptions:
    """Which log-probabilities to report."""

    sampled: bool = False
    """Of each generated token."""
    top_count: int = 0
    """Of this many of the likeliest tokens at each position."""
    prompt: bool = False
    """Of each prompt token but the first."""
    processed: bool = False
    """After penalties, temperature and filters, in place of before them."""


def completion_seed(seed: int, index: int) -> int:
    """Returns the seed of one completion of a request with several: the request's own for the first of them.

    The others get the outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
    that start from it. Its finalizer is a bijection, so no two of them are equal.

    Args:
        seed: Of the request, in [0, 2**64).
        index: Which completion, from 0.
    """
    if index == 0:
        return seed
    value = (seed + index * 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
