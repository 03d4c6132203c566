// What adapters add to a linear layer, as torch sees it.
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "low_rank_checks.h"

namespace headrace::operators {

Tensor low_rank(const Tensor& x, const Tensor& token_adapters, at::TensorList downs, at::TensorList ups,
                at::IntArrayRef part_ranks, at::IntArrayRef part_sizes) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "x must be [token, in] with whole rows");
  const int64_t adapter_count = static_cast<int64_t>(downs.size());
  const int64_t part_count = static_cast<int64_t>(part_sizes.size());
  TORCH_CHECK(static_cast<int64_t>(ups.size()) == adapter_count, "there must be as many ups as downs");
  TORCH_CHECK(static_cast<int64_t>(part_ranks.size()) == adapter_count * part_count,
              "part_ranks must be [adapter, part]");
  check_token_adapters(token_adapters, x.size(0), adapter_count);
  LowRankShape shape = {x.size(0), x.stride(0), x.size(1), 0, part_sizes.vec()};
  for (const int64_t size : part_sizes) shape.out_count += size;
  Tensor output = at::empty({x.size(0), shape.out_count}, x.options().dtype(at::kFloat));
  with_type(x, [&]<typename T>() {
    std::vector<LowRankWeights<T>> adapters;
    for (int64_t adapter = 0; adapter < adapter_count; ++adapter)
      adapters.push_back(check_low_rank<T>(downs[adapter], ups[adapter],
                                           part_ranks.slice(adapter * part_count, part_count), part_sizes, x.size(1)));
    headrace::low_rank<T>(data<T>(x), data<int64_t>(token_adapters), adapters, shape, mutable_data<float>(output));
  });
  return output;
}

}  // namespace headrace::operators

TORCH_LIBRARY_FRAGMENT(HEADRACE_NAMESPACE, library) {
  library.def(
      "low_rank(Tensor x, Tensor token_adapters, Tensor[] downs, Tensor[] ups, int[] part_ranks, int[] part_sizes) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(HEADRACE_NAMESPACE, CPU, library) { library.impl("low_rank", &headrace::operators::low_rank); }
