"""Memory is measured, and the KV cache is sized by it with an explanation."""

from pathlib import Path

import pytest
import torch

from headrace.contract.errors import StartupError
from headrace.shard.kv_cache import KvBudget, allocate, plan_budget
from headrace.shard.memory import available_bytes
from headrace.shard.models.config import ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocabulary_size=100,
    hidden_size=64,
    layer_count=5,
    head_count=4,
    kv_head_count=2,
    head_dim=16,
    inner_size=128,
    norm_epsilon=1e-5,
    context_token_count=512,
    rotary_base=10_000.0,
    rotary_scaling=None,
    ties_embeddings=True,
    end_of_sequence_token_ids=(2,),
)
BLOCK_BYTES = 2 * 5 * 2 * 16 * 16 * 4
"""Keys and values, layers, heads, tokens, elements, bytes."""


def plan(**changes: int) -> KvBudget:
    arguments = {
        "block_size": 16,
        "block_count": 0,
        "memory_bytes": 0,
        "available_bytes": 1000 * BLOCK_BYTES,
        "most_token_count": 0,
    }
    return plan_budget(CONFIG, dtype=torch.float32, **(arguments | changes))


def test_blocks_as_asked_for() -> None:
    budget = plan(block_count=7, memory_bytes=3)
    assert (budget.block_count, budget.block_size_bytes) == (7, BLOCK_BYTES)
    assert budget.explain() == "KV cache: 7 blocks of 16 tokens = 112 tokens, 0.1 MiB (as block_count says)"


def test_memory_as_asked_for() -> None:
    assert plan(memory_bytes=10 * BLOCK_BYTES + 5).block_count == 10


def test_half_of_what_is_left() -> None:
    budget = plan()
    assert budget.block_count == 500
    assert "50% of the" in budget.explain()


def test_no_more_than_can_be_used() -> None:
    budget = plan(most_token_count=161)
    assert budget.block_count == 11
    assert "all that the largest batch can use" in budget.explain()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bytes": BLOCK_BYTES - 1}, "not one block of"),
        ({"available_bytes": BLOCK_BYTES}, "not one block of"),
        ({"block_count": 1001}, "1001 blocks need .* but .* are left"),
        ({"memory_bytes": 1001 * BLOCK_BYTES}, "1001 blocks need"),
    ],
)
def test_what_does_not_fit_is_explained(changes: dict[str, int], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        plan(**changes)


def test_the_cache_takes_what_the_budget_says() -> None:
    layers = allocate(CONFIG, plan(block_count=3), dtype=torch.float32, device=CPU)
    assert len(layers) == 5
    assert all(layer.keys.shape == layer.values.shape == (3, 2, 16, 16) for layer in layers)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == 3 * BLOCK_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       4000 kB\nMemFree:  1 kB\nMemAvailable:   3000 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def limit_group(root: Path, limit: str, used: int) -> None:
    (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    (root / "sys/fs/cgroup/memory.current").write_text(f"{used}\n")


def test_without_a_group_the_machine_counts(root: Path) -> None:
    assert available_bytes(CPU, root) == 3000 * 1024


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 3000 * 1024), ("9000000", 3000 * 1024), ("1500000", 500_000), ("900000", 0)],
)
def test_the_group_counts_if_it_has_less(root: Path, limit: str, expected: int) -> None:
    limit_group(root, limit, used=1_000_000)
    assert available_bytes(CPU, root) == expected


def test_this_machine_can_be_measured() -> None:
    assert available_bytes(CPU) > 2**20
