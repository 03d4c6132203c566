"""From a path to a model that can run: the source by the kind of file, the code by the architecture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from headrace.contract.errors import StartupError
from headrace.kernels.dispatch import Kernels
from headrace.shard.forward_batch import ForwardBatch, ForwardResult
from headrace.shard.kv_cache import LayerCache
from headrace.shard.models.config import ModelConfig
from headrace.shard.models.llama import build_llama, load_llama_weights
from headrace.shard.weights import SafetensorsSource, WeightReader, WeightSource


class Model(Protocol):
    """A decoder that can take a step."""

    def forward(self, batch: ForwardBatch) -> ForwardResult:
        """Computes a step: fills the KV cache and returns logits and hidden states where they are wanted."""
        ...

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits, [output, vocabulary], of hidden states that `forward` returned."""
        ...


ModelBuilder = Callable[[Sequence[LayerCache], torch.Tensor], Model]
"""Completes a model whose weights are loaded, once the KV cache has its size, with each layer's cache and the
table of cosines and sines."""


def open_source(path: Path) -> WeightSource:
    """Opens a GGUF file or a folder with safetensors files.

    Raises:
        StartupError: the path is neither, or what it holds is not supported.
    """
    if path.is_dir():
        return SafetensorsSource(path)
    if path.suffix == ".gguf" and path.is_file():
        # The library that reads them takes a while to import, and folders do without.
        from headrace.shard.gguf_weights import GgufSource  # noqa: PLC0415

        return GgufSource(path)
    if not path.exists():
        raise StartupError(f"the model {path} does not exist")
    raise StartupError(f"the model {path} is neither a folder nor a .gguf file")


def load_model(config: ModelConfig, reader: WeightReader, kernels: Kernels) -> ModelBuilder:
    """Loads a model's weights; the KV cache comes later, since it takes the memory that is left.

    Raises:
        StartupError: a tensor is missing, unknown or of the wrong shape.
    """
    weights = load_llama_weights(config, reader, kernels)
    reader.finish()
    return lambda caches, cos_sin: build_llama(config, weights, caches, cos_sin, kernels)
