// What adapters add to a linear layer, as torch sees it.
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "low_rank.h"
#include "operator_checks.h"
#include "vector.h"

namespace headrace::operators {

Tensor low_rank(const Tensor& x, const Tensor& token_adapters, at::TensorList downs, at::TensorList ups,
                at::IntArrayRef part_ranks, at::IntArrayRef part_sizes) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "x must be [token, in] with whole rows");
  const int64_t adapter_count = static_cast<int64_t>(downs.size());
  const int64_t part_count = static_cast<int64_t>(part_sizes.size());
  TORCH_CHECK(static_cast<int64_t>(ups.size()) == adapter_count, "there must be as many ups as downs");
  TORCH_CHECK(static_cast<int64_t>(part_ranks.size()) == adapter_count * part_count,
              "part_ranks must be [adapter, part]");
  check_column(token_adapters, at::kLong, x.size(0), "token_adapters");
  for (int64_t token = 0; token < x.size(0); ++token) {
    const int64_t adapter = data<int64_t>(token_adapters)[token];
    TORCH_CHECK(adapter >= -1 && adapter < adapter_count, "token_adapters has ", adapter, " outside of [-1, ",
                adapter_count, ")");
  }
  LowRankShape shape = {x.size(0), x.stride(0), x.size(1), 0, part_sizes.vec()};
  for (const int64_t size : part_sizes) shape.out_count += size;
  for (int64_t adapter = 0; adapter < adapter_count; ++adapter) {
    const at::IntArrayRef ranks = part_ranks.slice(adapter * part_count, part_count);
    const Tensor& down = downs[adapter];
    check_contiguous(down, "down");
    check_like(down, x, "down");
    TORCH_CHECK(down.dim() == 2 && down.size(0) == x.size(1) && down.size(1) % kLanes == 0,
                "down must be [in, rank] with a rank that is a multiple of ", kLanes);
    int64_t rank = 0, up_size = 0;
    for (int64_t part = 0; part < part_count; ++part) {
      TORCH_CHECK(ranks[part] >= 0, "a rank is negative");
      rank += ranks[part];
      up_size += ranks[part] * part_sizes[part];
    }
    TORCH_CHECK(rank <= down.size(1), "the parts' ranks are more than down has");
    check_column(ups[adapter], x.scalar_type(), up_size, "up");
  }
  Tensor output = at::empty({x.size(0), shape.out_count}, x.options().dtype(at::kFloat));
  with_type(x, [&]<typename T>() {
    std::vector<LowRankWeights<T>> adapters;
    for (int64_t adapter = 0; adapter < adapter_count; ++adapter)
      adapters.push_back({data<T>(downs[adapter]), downs[adapter].size(1), data<T>(ups[adapter]),
                          part_ranks.data() + adapter * part_count});
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
