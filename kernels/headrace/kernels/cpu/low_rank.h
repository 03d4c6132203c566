// What adapters add to a linear layer: for each token the low-rank product of its own adapter, if it has one.
#pragma once

#include <cstdint>
#include <vector>

namespace headrace {

// One adapter's product beside one layer, whose outputs are parts with a product each.
template <typename T>
struct LowRankWeights {
  // [in][rank], the parts' columns one after another; rank is a multiple of 16, filled up with zeros.
  const T* down;
  int64_t rank;
  // [rank of part][size of part], one part after another.
  const T* up;
  // The rank of each part; 0 where there is no product.
  const int64_t* part_ranks;
};

struct LowRankShape {
  int64_t token_count;
  int64_t token_stride;  // of the input, in elements
  int64_t in_count;
  int64_t out_count;
  std::vector<int64_t> part_sizes;
};

// output [token, out] = up(down(input)), zero for a token whose adapter is -1.
template <typename T>
void low_rank(const T* input, const int64_t* token_adapters, const std::vector<LowRankWeights<T>>& adapters,
              const LowRankShape& shape, float* output);

}  // namespace headrace
