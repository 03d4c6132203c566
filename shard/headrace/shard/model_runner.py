"""Turns the rows of a step into tensors and runs the model over them."""

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.dispatch import Kernels
from headrace.kernels.low_rank import TokenAdapters
from headrace.shard.adapter_stacks import StepAdapters
from headrace.shard.forward_batch import ForwardBatch, ForwardResult
from headrace.shard.kv_pages import KvPages
from headrace.shard.models.registry import Model
from headrace.shard.step_rows import FlatTokens


class ModelRunner:
    """Runs a model over flat batches of tokens, without padding and without a distinction of prefill and decode."""

    def __init__(
        self, model: Model, *, kernels: Kernels, block_size: int, device: torch.device, pages: KvPages | None = None
    ) -> None:
        """Takes what keeps the model's KV cache laid out ahead, if anything does."""
        self._model = model
        self._pages = pages
        self._kernels = kernels
        self._block_size = block_size
        self._device = device
        self._is_host = device.type == "cpu"

    def prepare(
        self,
        flat: FlatTokens,
        block_tables: NDArray[np.int32],
        output_indices: NDArray[np.int64],
        hidden_indices: NDArray[np.int64] | None = None,
        adapters: StepAdapters | None = None,
        *,
        wants_logits: bool = True,
    ) -> ForwardBatch:
        """Returns the tensors of a step.

        Args:
            flat: Its tokens.
            block_tables: [computing, block]
            output_indices: Tokens whose logits are wanted, since a draw follows them.
            hidden_indices: Tokens whose hidden states are wanted; None for none.
            adapters: Those of its rows; None if no row has one.
            wants_logits: Whether more than the likeliest token of each row that samples is wanted.
        """
        if self._pages is not None:
            # Of a list: numpy's takes three times as long where its code is in no cache, as after a forward pass.
            self._pages.begin_step(max(flat.slot_ids.tolist()) // self._block_size)
        attention = self._kernels.prepare_attention(
            self._tensor(block_tables),
            self._tensor(flat.query_starts.astype(np.int32)),
            self._tensor(flat.context_lengths.astype(np.int32)),
            block_size=self._block_size,
        )
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
            wants_logits=wants_logits,
            adapters=None if adapters is None else self._token_adapters(adapters, flat),
        )

    def warm_up(self) -> None:
        """Computes one token, so that whatever is built or allocated on first use is there. Block 0 is overwritten."""
        self.rehearse(1)

    def rehearse(self, token_count: int) -> None:
        """Computes tokens of one sequence, with logits for each. The first blocks that hold so many are overwritten."""
        positions = np.arange(token_count, dtype=np.int64)
        flat = FlatTokens(
            token_ids=np.zeros_like(positions),
            positions=positions,
            slot_ids=positions,
            query_starts=np.array([0, token_count], dtype=np.int64),
            context_lengths=np.array([token_count], dtype=np.int64),
        )
        block_table = np.arange(-(-token_count // self._block_size), dtype=np.int32)[None, :]
        with torch.inference_mode():
            self.run(self.prepare(flat, block_table, positions))

    def run(self, batch: ForwardBatch) -> ForwardResult:
        """Returns logits of each row that samples, or the likeliest alone, and the hidden states that are wanted.

        Like `project`, to be called in inference mode.
        """
        result = self._model.forward(batch)
        if self._pages is not None:
            self._pages.end_step()
        return result

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits, [output, vocabulary], of hidden states, [output, hidden]."""
        return self._model.project(hidden)

    def _token_adapters(self, adapters: StepAdapters, flat: FlatTokens) -> TokenAdapters:
        indices = np.repeat(adapters.row_indices, np.diff(flat.query_starts))
        return TokenAdapters(indices=self._tensor(indices), stacks=adapters.stacks)

    def _tensor(self, values: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self._is_host else tensor.to(self._device)
