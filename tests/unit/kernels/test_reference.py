"""The smaller operators against torch's own modules and against the definition."""

import pytest
import torch

from headrace.kernels.dispatch import KernelsUnavailable, select

KERNELS = select(torch.device("cpu"), "reference")


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("token_count", "hidden"), [(1, 8), (5, 576), (3, 17)])
def test_rms_norm_equals_torch(token_count: int, hidden: int) -> None:
    x, weight = randn(token_count, hidden), randn(hidden, seed=1)
    expected = torch.nn.functional.rms_norm(x, (hidden,), weight, 1e-5)
    torch.testing.assert_close(KERNELS.rms_norm(x, weight, 1e-5), expected)


def test_rms_norm_sums_in_float32() -> None:
    x = torch.full((1, 4096), 200.0, dtype=torch.float16)
    assert KERNELS.rms_norm(x, torch.ones(4096, dtype=torch.float16), 1e-5).eq(1).all()


def test_add_rms_norm_returns_the_norm_of_the_sum_and_the_sum() -> None:
    x, residual, weight = randn(4, 32), randn(4, 32, seed=1), randn(32, seed=2)
    total = x + residual
    expected = torch.nn.functional.rms_norm(total, (32,), weight, 1e-6)
    normed, summed = KERNELS.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(summed, total)


def test_silu_mul_gates_the_second_half_with_the_first() -> None:
    gate_up = randn(3, 14)
    gate, up = gate_up[:, :7], gate_up[:, 7:]
    torch.testing.assert_close(KERNELS.silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_packed_linear_layer_is_a_linear_layer(has_bias: bool) -> None:
    weight, bias, x = randn(12, 8), randn(12, seed=1) if has_bias else None, randn(6, 16, seed=2)[:, :8]
    layer = KERNELS.pack_linear(weight.clone(), bias)
    assert (layer.in_feature_count, layer.out_feature_count) == (8, 12)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotary_dim", [8, 6])
def test_rotary_turns_pairs_by_their_angles_and_fills_the_slots(rotary_dim: int) -> None:
    head_dim, block_size = 8, 4
    merged = randn(3, 6, head_dim)
    query, key, value = merged[:, :4], merged[:, 4:5], merged[:, 5:]
    positions, slot_ids = torch.tensor([2, 0, 9]), torch.tensor([11, 0, 5])
    angles = torch.outer(torch.arange(10.0), torch.tensor([1.0, 0.3, 0.01, 0.002])[: rotary_dim // 2])
    key_cache, value_cache = torch.zeros(4, 1, block_size, head_dim), torch.zeros(4, 1, block_size, head_dim)
    rotated = KERNELS.rotary_and_write_kv(
        query,
        key,
        value,
        positions=positions,
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=1),
        key_cache=key_cache,
        value_cache=value_cache,
        slot_ids=slot_ids,
    )

    def turn(heads: torch.Tensor) -> torch.Tensor:
        half = rotary_dim // 2
        numbers = torch.complex(heads[..., :half], heads[..., half:rotary_dim])
        turned = numbers * torch.polar(torch.ones(3, 1, half), angles[positions][:, None])
        return torch.cat((turned.real, turned.imag, heads[..., rotary_dim:]), dim=-1)

    torch.testing.assert_close(rotated, turn(query))
    assert rotated.is_contiguous()
    expected_keys, expected_values = torch.zeros_like(key_cache), torch.zeros_like(value_cache)
    for token, slot in enumerate(slot_ids.tolist()):
        expected_keys[slot // block_size, :, slot % block_size] = turn(key)[token]
        expected_values[slot // block_size, :, slot % block_size] = value[token]
    torch.testing.assert_close(key_cache, expected_keys)
    assert torch.equal(value_cache, expected_values)


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(KernelsUnavailable, match=r"'fpga'.*reference"):
        select(torch.device("cpu"), "fpga")


def test_reference_can_be_asked_for() -> None:
    assert select(torch.device("cpu"), "reference").name == "reference"
