"""Turns the rows of a step into tensors and runs the model over them."""

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.dispatch import Kernels
from headrace.shard.forward_batch import ForwardBatch, ForwardResult
from headrace.shard.input_batch import FlatTokens
from headrace.shard.models.registry import Model


class ModelRunner:
    """Runs a model over flat batches of tokens, without padding and without a distinction of prefill and decode."""

    def __init__(self, model: Model, *, kernels: Kernels, block_size: int, device: torch.device) -> None:
        self._model = model
        self._kernels = kernels
        self._block_size = block_size
        self._device = device

    def prepare(
        self,
        flat: FlatTokens,
        block_tables: NDArray[np.int32],
        samples: NDArray[np.bool_],
        hidden_indices: NDArray[np.int64] | None = None,
    ) -> ForwardBatch:
        """Returns the tensors of a step.

        Args:
            flat: Its tokens.
            block_tables: [computing, block]
            samples: [computing] whether a row's last token is followed by a draw.
            hidden_indices: Tokens whose hidden states are wanted; None for none.
        """
        attention = self._kernels.prepare_attention(
            self._tensor(block_tables),
            self._tensor(flat.query_starts.astype(np.int32)),
            self._tensor(flat.context_lengths.astype(np.int32)),
            block_size=self._block_size,
        )
        output_indices = flat.query_starts[1:][samples] - 1
        sampling_count = len(output_indices)
        if hidden_indices is not None:
            output_indices = np.concatenate((output_indices, hidden_indices))
        return ForwardBatch(
            token_ids=self._tensor(flat.token_ids),
            positions=self._tensor(flat.positions),
            slot_ids=self._tensor(flat.slot_ids),
            output_indices=self._tensor(output_indices),
            sampling_count=sampling_count,
            attention=attention,
        )

    def warm_up(self) -> None:
        """Computes one token, so that whatever is built or allocated on first use is there. Block 0 is overwritten."""
        one, zero = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        flat = FlatTokens(
            token_ids=zero,
            positions=zero,
            slot_ids=zero,
            query_starts=np.array([0, 1], dtype=np.int64),
            context_lengths=one,
        )
        self.run(self.prepare(flat, np.zeros((1, 1), dtype=np.int32), one.astype(np.bool_)))

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> ForwardResult:
        """Returns logits for each row that samples, and the hidden states that are wanted beside them."""
        return self._model.forward(batch)

    @torch.inference_mode()
    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits, [output, vocabulary], of hidden states, [output, hidden]."""
        return self._model.project(hidden)

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)
