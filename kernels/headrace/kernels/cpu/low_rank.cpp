#include "low_rank.h"

#include <algorithm>

#include "bfloat16.h"
#include "low_rank_tasks.h"
#include "threads.h"

namespace headrace {
namespace {

// Fewer products than this are done sooner than another thread is called.
constexpr int64_t kProductsPerThread = 32 * 1024;

}  // namespace

template <typename T>
void low_rank(const T* input, const int64_t* token_adapters, const std::vector<LowRankWeights<T>>& adapters,
              const LowRankShape& shape, float* output) {
  std::fill_n(output, shape.token_count * shape.out_count, 0.0f);
  const std::vector<TokenGroup> groups =
      group_tokens(token_adapters, shape.token_count, static_cast<int64_t>(adapters.size()));
  if (groups.empty()) return;
  int64_t widest = 0;
  for (const LowRankWeights<T>& adapter : adapters) widest = std::max(widest, adapter.rank);
  const auto group_count = static_cast<int64_t>(groups.size());
  std::vector<float> narrow(group_count * TokenGroup::kSize * widest);
  const LowRankSizes sizes = {shape.in_count, shape.part_sizes};
  const LowRankOutput target = {narrow.data(), widest, output, false};
  const LowRankTasks<T> tasks(input, shape.token_stride, groups, adapters.data(), sizes, target);
  const int64_t narrow_products = tasks.narrow_count() * kLanes * shape.in_count;
  parallel_shares(tasks.narrow_count(), narrow_products / kProductsPerThread, [&](Share share) {
    for (int64_t task = share.begin; task < share.end; ++task) tasks.multiply_narrow(task);
  });
  const int64_t wide_products = group_count * widest * shape.out_count;
  parallel_shares(tasks.wide_count(), wide_products / kProductsPerThread, [&](Share share) {
    for (int64_t task = share.begin; task < share.end; ++task) tasks.multiply_wide(task);
  });
}

#define INSTANTIATE(T)                                                                                            \
  template void low_rank<T>(const T*, const int64_t*, const std::vector<LowRankWeights<T>>&, const LowRankShape&, \
                            float*);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace headrace
