// What the operators check of adapters before they read by what they were given.
#pragma once

#include "low_rank.h"
#include "operator_checks.h"
#include "vector.h"

namespace headrace::operators {

// Checks that every token's adapter is one of them, or -1.
inline void check_token_adapters(const Tensor& token_adapters, int64_t token_count, int64_t adapter_count) {
  check_column(token_adapters, at::kLong, token_count, "token_adapters");
  for (int64_t token = 0; token < token_count; ++token) {
    const int64_t adapter = data<int64_t>(token_adapters)[token];
    TORCH_CHECK(adapter >= -1 && adapter < adapter_count, "token_adapters has ", adapter, " outside of [-1, ",
                adapter_count, ")");
  }
}

// One adapter's product beside a layer of so many inputs, whose parts have these ranks and sizes.
template <typename T>
LowRankWeights<T> check_low_rank(const Tensor& down, const Tensor& up, at::IntArrayRef ranks,
                                 at::IntArrayRef part_sizes, int64_t in_count) {
  check_contiguous(down, "down");
  TORCH_CHECK(down.scalar_type() == kStoredType<T>, "down is ", down.scalar_type(), " beside ", kStoredType<T>);
  TORCH_CHECK(down.dim() == 2 && down.size(0) == in_count && down.size(1) % kLanes == 0,
              "down must be [in, rank] with a rank that is a multiple of ", kLanes);
  int64_t rank = 0, up_size = 0;
  for (std::size_t part = 0; part < part_sizes.size(); ++part) {
    TORCH_CHECK(ranks[part] >= 0, "a rank is negative");
    rank += ranks[part];
    up_size += ranks[part] * part_sizes[part];
  }
  TORCH_CHECK(rank <= down.size(1), "the parts' ranks are more than down has");
  check_column(up, kStoredType<T>, up_size, "up");
  return {data<T>(down), down.size(1), data<T>(up), ranks.data()};
}

}  // namespace headrace::operators
