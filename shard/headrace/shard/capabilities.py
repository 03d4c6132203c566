"""The request fields that our engines understand, and the check that no other one is used."""

from headrace.contract.errors import PlanRejected
from headrace.contract.sampling import LogprobOptions, SamplingParams
from headrace.contract.step import AdmittedSequence

SUPPORTED_FIELDS = frozenset(
    {
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.seed",
        "stopping.max_new_token_count",
        "stopping.min_new_token_count",
        "stopping.stop_token_ids",
        "stopping.ignore_end_of_sequence",
        "output.token_logprobs",
        "output.top_logprob_count",
    }
)

_NEUTRAL = SamplingParams()
_UNSUPPORTED_SAMPLING = (
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "length_penalty",
    "banned_sequences",
)


def check_supported(sequence: AdmittedSequence) -> None:
    """Makes sure that nothing a sequence asks for would be dropped silently.

    Raises:
        PlanRejected: the sequence uses an option that is not in SUPPORTED_FIELDS.
    """
    field = _unsupported_field(sequence)
    if field is not None:
        raise PlanRejected(f"sequence {sequence.sequence_id}: this engine has no {field}")


def _unsupported_field(sequence: AdmittedSequence) -> str | None:
    for name in _UNSUPPORTED_SAMPLING:
        if getattr(sequence.sampling, name) != getattr(_NEUTRAL, name):
            return f"sampling.{name}"
    if sequence.logprobs != LogprobOptions(sampled=sequence.logprobs.sampled, top_count=sequence.logprobs.top_count):
        return "logprobs of the prompt or of the processed distribution"
    if sequence.constraint is not None:
        return "constraint"
    if sequence.adapter:
        return "adapter"
    return None
