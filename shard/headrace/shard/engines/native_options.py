"""What can be set about the native engine."""

from dataclasses import dataclass
from enum import StrEnum


class Speculation(StrEnum):
    """Who guesses tokens ahead."""

    OFF = "off"
    NGRAM = "ngram"
    """Whoever finds the last tokens earlier in the text."""
    DRAFT = "draft"
    """A second, smaller model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeOptions:
    """How the native engine runs a model."""

    model: str
    """A folder with config.json and safetensors files, or a GGUF file."""
    dtype: str = "auto"
    """Of weights, activations and KV cache: float32, bfloat16 or auto: that in which the weights are stored,
    where the operators are fast in it."""
    weight_format: str = "auto"
    """How linear layers keep their weights: auto, in the blocks of a GGUF file (Q4_0, Q4_1, Q8_0) and else as is
    fastest, the head in eight bits beside the whole; compact, bfloat16 in twelve bits without loss; plain, in dtype;
    the results of these three are the same; or int8, with one scale per output."""
    device: str = "cpu"
    """As torch names it."""
    kernels: str = "auto"
    """A version of the operators; auto takes the fastest that runs on the device."""
    block_size: int = 16
    """Tokens per KV block."""
    block_count: int = 0
    """KV blocks; 0 decides by memory."""
    kv_memory_bytes: int = 0
    """Memory for the KV cache; 0 takes half of what is left after loading, but no more than can be used."""
    context_token_count: int = 0
    """Longest sequence; 0 takes the model's, which it must not exceed."""
    row_limit: int = 256
    """Most rows in a step; 0 sets no limit."""
    token_limit: int = 8192
    """Most tokens in a step; 0 sets no limit."""
    speculation: str = "off"
    """Who guesses tokens ahead: off, ngram or draft."""
    draft_model: str = ""
    """The model that guesses with speculation draft: a folder or a GGUF file, with the same tokenizer."""
    draft_token_limit: int = 8
    """Most tokens guessed for a row in a step."""
    adapter_limit: int = 16
    """Most adapters at the same time; 0 takes none."""
    adapter_memory_bytes: int = 512 * 2**20
    """Most memory that their weights take together."""
    adapter_rank_limit: int = 256
    """Largest rank of an adapter."""
    thread_count: int = 0
    """Threads of torch's operators in this process; 0 leaves them as they are."""
    processors: str = ""
    """A processor for each of them, such as 0,1, to which they are bound; empty leaves them to the system."""
