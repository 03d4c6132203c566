"""What adapters add to linear layers: right for every shape, and no token knows of another."""

import pytest
import torch

from headrace.kernels.cpu import CpuKernels
from headrace.kernels.low_rank import LowRankLayer, LowRankPart, LowRankStack
from headrace.kernels.reference import ReferenceKernels

DTYPES = [torch.float32, torch.bfloat16]
CPU = torch.device("cpu")
# (tokens, in, sizes of the parts, for each adapter the rank of each part): vectors are 16 wide, groups 4 tokens.
Shape = tuple[int, int, tuple[int, ...], tuple[tuple[int, ...], ...]]
SHAPES: list[Shape] = [
    (1, 1, (1,), ((1,),)),
    (1, 576, (576, 192, 192), ((16, 16, 16),)),
    (5, 33, (31, 7), ((3, 5), (8, 0))),
    (23, 64, (300,), ((4,), (64,), (17,))),
    (70, 96, (40, 40), ((0, 9), (0, 0), (33, 2))),
    (300, 40, (1536, 1536), ((8, 8), (1, 30))),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def randn(generator: torch.Generator, *size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*size, generator=generator).to(dtype)


class Case:
    """An input, its tokens' adapters, and the adapters in both forms."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        token_count, in_count, sizes, ranks = shape
        generator = torch.Generator().manual_seed(token_count)
        self.x = randn(generator, token_count, in_count + 8, dtype=dtype)[:, :in_count]
        self.token_adapters = torch.randint(-1, len(ranks), (token_count,), generator=generator)
        self.token_adapters[0] = 0
        self.parts = [
            [
                LowRankPart(
                    down=randn(generator, rank, in_count, dtype=dtype), up=randn(generator, size, rank, dtype=dtype)
                )
                if rank
                else None
                for rank, size in zip(adapter_ranks, sizes, strict=True)
            ]
            for adapter_ranks in ranks
        ]
        self.sizes = sizes
        self.stack = LowRankStack(
            [LowRankLayer.of(parts, in_feature_count=in_count, dtype=dtype, device=CPU) for parts in self.parts], sizes
        )

    def exact(self, *, absolute: bool = False) -> torch.Tensor:
        """Returns the products in float64, of magnitudes if `absolute`."""
        total = torch.zeros(self.x.shape[0], sum(self.sizes), dtype=torch.float64)
        for token, adapter in enumerate(self.token_adapters.tolist()):
            start = 0
            for part, size in zip(self.parts[adapter], self.sizes, strict=True):
                if adapter >= 0 and part is not None:
                    factors = (self.x[token].double(), part.down.double(), part.up.double())
                    x, down, up = (factor.abs() for factor in factors) if absolute else factors
                    total[token, start : start + size] = x @ down.T @ up.T
                start += size
        return total


@dtypes
@shapes
def test_the_products_of_each_tokens_adapter(cpu_kernels: CpuKernels, shape: Shape, dtype: torch.dtype) -> None:
    case = Case(shape, dtype)
    token_count, in_count, sizes, ranks = shape
    # Two sums in float32, one after the other, in any order.
    bound = (in_count + max(map(max, ranks)) + 4) * 2.0**-23 * case.exact(absolute=True)
    for kernels in (cpu_kernels, ReferenceKernels()):
        added = kernels.low_rank(case.x, case.token_adapters, case.stack)
        assert (added.dtype, added.shape) == (torch.float32, (token_count, sum(sizes)))
        assert ((added.double() - case.exact()).abs() <= bound).all()
        assert (added[case.token_adapters < 0] == 0).all()


@dtypes
@shapes
def test_no_token_knows_of_another(cpu_kernels: CpuKernels, shape: Shape, dtype: torch.dtype) -> None:
    case = Case(shape, dtype)
    together = cpu_kernels.low_rank(case.x, case.token_adapters, case.stack)
    for token in range(0, shape[0], 7):
        alone = cpu_kernels.low_rank(case.x[token : token + 1], case.token_adapters[token : token + 1], case.stack)
        assert torch.equal(alone[0], together[token])


def test_what_does_not_fit_is_refused(cpu_kernels: CpuKernels) -> None:
    case = Case((3, 8, (4,), ((2,),)), torch.float32)
    wrong = [
        (case.x, torch.tensor([0, 1, 0]), case.stack, r"token_adapters has 1 outside of \[-1, 1\)"),
        (case.x, torch.tensor([0, 0]), case.stack, "token_adapters must be 3"),
        (case.x[:, :7], case.token_adapters, case.stack, "down must be"),
        (case.x.bfloat16(), case.token_adapters, case.stack, "down is Float beside BFloat16"),
        (case.x, case.token_adapters, LowRankStack(case.stack.layers, (5,)), "up must be 10"),
        (case.x, case.token_adapters, LowRankStack(case.stack.layers, (2, 2)), "part_ranks must be"),
    ]
    for x, token_adapters, stack, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            cpu_kernels.low_rank(x, token_adapters, stack)


@dtypes
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize(("token_count", "in_count", "out_count"), [(1, 32, 30), (3, 33, 66), (40, 96, 128)])
def test_what_is_added_to_a_linear_layer_comes_before_its_gating(
    cpu_kernels: CpuKernels, *, token_count: int, in_count: int, out_count: int, is_gated: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(in_count)
    weight, x = randn(generator, out_count, in_count, dtype=dtype), randn(generator, token_count, in_count, dtype=dtype)
    added = randn(generator, token_count, out_count, dtype=torch.float32)
    added[0] = 0
    for kernels in (cpu_kernels, ReferenceKernels()):
        layer = (kernels.pack_gated_linear if is_gated else kernels.pack_linear)(weight)
        exact = x.double() @ weight.double().T + added.double()
        if is_gated:
            exact = torch.nn.functional.silu(exact[:, : out_count // 2]) * exact[:, out_count // 2 :]
        torch.testing.assert_close(
            layer(x, added).double(), exact, atol=1e-4 if dtype == torch.float32 else 0.5, rtol=2**-6
        )
    layer = (cpu_kernels.pack_gated_linear if is_gated else cpu_kernels.pack_linear)(weight)
    # Whoever adds nothing gets the same, to the last bit, as where nobody adds anything.
    assert torch.equal(layer(x, added)[0], layer(x)[0])
    with pytest.raises(RuntimeError, match="added must be"):
        layer(x, added[:, 1:].contiguous())
