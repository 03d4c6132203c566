"""Draws rows of the batch, each with its own parameters and its own random numbers."""

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.dispatch import Kernels
from headrace.kernels.philox import SECOND_NUMBER
from headrace.shard.batch_columns import BatchColumns


def draw_rows(
    kernels: Kernels, logits: torch.Tensor, columns: BatchColumns, places: NDArray[np.int64], *, is_second: bool = False
) -> torch.Tensor:
    """Returns one token per row, [row].

    Args:
        kernels: The operators.
        logits: [row, vocabulary], of each row a finite one.
        columns: The batch's.
        places: [row]
        is_second: Whether to draw with the second random number of a position, once the first came to nothing.
    """

    def column(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values[places]).to(logits.device)

    # The drawn token's index is the number of tokens before it.
    positions = column(columns.token_counts)
    return kernels.sample(
        logits,
        temperature=column(columns.temperatures),
        top_k=column(columns.top_ks),
        top_p=column(columns.top_ps),
        seeds=column(columns.seeds),
        positions=positions | SECOND_NUMBER if is_second else positions,
    )
