"""The request fields that our engines understand, and the check that no other one is used."""

from headrace.contract.errors import PlanRejected
from headrace.contract.sampling import SamplingParams
from headrace.contract.step import AdmittedSequence

FAKE_FIELDS = frozenset(
    {
        "adapter",
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
        "output.prompt_logprobs",
    }
)
"""What an engine without a model can do."""

NATIVE_FIELDS = FAKE_FIELDS | {
    "constraint",
    "sampling.min_p",
    "sampling.typical_p",
    "sampling.repetition_penalty",
    "sampling.frequency_penalty",
    "sampling.presence_penalty",
    "sampling.logit_bias",
    "sampling.banned_words",
    "sampling.length_penalty",
    "output.processed_logprobs",
    "watermark",
}
"""What the native engine can do."""

_NEUTRAL = SamplingParams()
_SAMPLING_FIELDS = {
    "min_p": "sampling.min_p",
    "typical_p": "sampling.typical_p",
    "repetition_penalty": "sampling.repetition_penalty",
    "frequency_penalty": "sampling.frequency_penalty",
    "presence_penalty": "sampling.presence_penalty",
    "logit_bias": "sampling.logit_bias",
    "length_penalty": "sampling.length_penalty",
    "banned_text": "sampling.banned_words",
    "watermark": "watermark",
}
"""By the name in SamplingParams; every engine has the others."""


def check_supported(sequence: AdmittedSequence, supported_fields: frozenset[str]) -> None:
    """Makes sure that nothing a sequence asks for would be dropped silently.

    Raises:
        PlanRejected: the sequence uses an option that is not in `supported_fields`.
    """
    missing = sorted(_used_fields(sequence) - supported_fields)
    if missing:
        raise PlanRejected(f"sequence {sequence.sequence_id}: this engine has no {missing[0]}")


def _used_fields(sequence: AdmittedSequence) -> set[str]:
    sampling = sequence.sampling
    used = {field for name, field in _SAMPLING_FIELDS.items() if getattr(sampling, name) != getattr(_NEUTRAL, name)}
    others = {
        "output.prompt_logprobs": sequence.logprobs.prompt,
        "output.processed_logprobs": sequence.logprobs.processed,
        "constraint": bool(sequence.grammar),
        "adapter": bool(sequence.adapter),
    }
    return used | {field for field, is_used in others.items() if is_used}
