// What adapters add to one linear layer as tasks that threads share: first the narrow products, then the wide ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "low_rank.h"
#include "row_functions.h"
#include "vector.h"

namespace headrace {

// Tokens of one adapter that are computed together, so that its weights are read once for all of them.
struct TokenGroup {
  static constexpr int64_t kSize = 4;

  int64_t adapter;
  int64_t tokens[kSize];
  int64_t count;
};

// Tokens whose adapter is -1 are in no group.
inline std::vector<TokenGroup> group_tokens(const int64_t* token_adapters, int64_t token_count, int64_t adapter_count) {
  std::vector<TokenGroup> groups;
  std::vector<int64_t> open(adapter_count, -1);
  for (int64_t token = 0; token < token_count; ++token) {
    const int64_t adapter = token_adapters[token];
    if (adapter < 0) continue;
    if (open[adapter] < 0 || groups[open[adapter]].count == TokenGroup::kSize) {
      open[adapter] = static_cast<int64_t>(groups.size());
      groups.push_back({adapter, {}, 0});
    }
    TokenGroup& group = groups[open[adapter]];
    group.tokens[group.count++] = token;
  }
  return groups;
}

// sums[token] = 16 columns of `matrix` from `column` on, weighted by the token's factors.
// NOTE: every sum is made in the order of the rows, whatever the number of tokens. So what a token gets does not
// depend, to the last bit, on the tokens beside it.
template <int kCount, typename Factor, typename T>
void weigh(const Factor* const* factors, const T* matrix, int64_t row_count, int64_t stride, int64_t column,
           int64_t column_count, Floats* sums) {
  Floats totals[kCount] = {};
  for (int64_t row = 0; row < row_count; ++row) {
    const Floats values = load_part(matrix + row * stride + column, column_count);
#pragma GCC unroll 4
    for (int token = 0; token < kCount; ++token) totals[token] += broadcast(widen(factors[token][row])) * values;
  }
  for (int token = 0; token < kCount; ++token) sums[token] = totals[token];
}

template <typename Factor, typename T>
void weigh(int64_t count, const Factor* const* factors, const T* matrix, int64_t row_count, int64_t stride,
           int64_t column, int64_t column_count, Floats* sums) {
  switch (count) {
    case 1:
      return weigh<1>(factors, matrix, row_count, stride, column, column_count, sums);
    case 2:
      return weigh<2>(factors, matrix, row_count, stride, column, column_count, sums);
    case 3:
      return weigh<3>(factors, matrix, row_count, stride, column, column_count, sums);
    default:
      return weigh<4>(factors, matrix, row_count, stride, column, column_count, sums);
  }
}

// What a linear layer is to adapters.
struct LowRankSizes {
  int64_t in_count;
  std::vector<int64_t> part_sizes;

  int64_t out_count() const { return offset_of(part_sizes.data(), static_cast<int64_t>(part_sizes.size())); }

  static int64_t offset_of(const int64_t* counts, int64_t part) {
    int64_t offset = 0;
    for (int64_t before = 0; before < part; ++before) offset += counts[before];
    return offset;
  }
};

// Where the products of the groups' tokens go.
struct LowRankOutput {
  // [group][token][widest rank]
  float* narrow;
  int64_t widest_rank;
  // [row][out]
  float* wide;
  // Whether a token's row is its place among the groups, `kSize` to each; else it is the token itself.
  bool is_compact;
};

template <typename T>
class LowRankTasks {
 public:
  // `adapters` has a product for each adapter that the groups name.
  LowRankTasks(const T* input, int64_t token_stride, const std::vector<TokenGroup>& groups,
               const LowRankWeights<T>* adapters, const LowRankSizes& sizes, const LowRankOutput& output)
      : input_(input),
        token_stride_(token_stride),
        groups_(groups),
        adapters_(adapters),
        sizes_(sizes),
        output_(output),
        columns_per_group_(output.widest_rank / kLanes),
        pieces_per_group_(0) {
    for (const int64_t size : sizes.part_sizes) pieces_per_group_ += piece_count(size);
  }

  // Tasks of the narrow products. All of them come before any of the wide ones.
  int64_t narrow_count() const { return static_cast<int64_t>(groups_.size()) * columns_per_group_; }

  int64_t wide_count() const { return static_cast<int64_t>(groups_.size()) * pieces_per_group_; }

  void multiply_narrow(int64_t task) const {
    const int64_t index = task / columns_per_group_;
    const TokenGroup& group = groups_[index];
    const LowRankWeights<T>& adapter = adapters_[group.adapter];
    const int64_t column = task % columns_per_group_ * kLanes;
    if (column >= adapter.rank) return;
    const T* rows[TokenGroup::kSize];
    for (int64_t token = 0; token < group.count; ++token) rows[token] = input_ + group.tokens[token] * token_stride_;
    Floats sums[TokenGroup::kSize];
    weigh(group.count, rows, adapter.down, sizes_.in_count, adapter.rank, column, kLanes, sums);
    for (int64_t token = 0; token < group.count; ++token) store(narrow_row(index, token) + column, sums[token]);
  }

  // Writes some outputs of one part for one group; zeros where the adapter has no product.
  void multiply_wide(int64_t task) const {
    const int64_t index = task / pieces_per_group_;
    const TokenGroup& group = groups_[index];
    const LowRankWeights<T>& adapter = adapters_[group.adapter];
    int64_t piece = task % pieces_per_group_;
    int64_t part = 0, first_output = 0;
    const T* up = adapter.up;
    while (piece >= piece_count(sizes_.part_sizes[part])) {
      piece -= piece_count(sizes_.part_sizes[part]);
      first_output += sizes_.part_sizes[part];
      up += adapter.part_ranks[part] * sizes_.part_sizes[part];
      ++part;
    }
    const int64_t size = sizes_.part_sizes[part];
    const float* rows[TokenGroup::kSize];
    for (int64_t token = 0; token < group.count; ++token)
      rows[token] = narrow_row(index, token) + LowRankSizes::offset_of(adapter.part_ranks, part);
    const int64_t out_count = sizes_.out_count();
    const int64_t end = std::min((piece + 1) * kOutputsPerTask, size);
    for (int64_t column = piece * kOutputsPerTask; column < end; column += kLanes) {
      const int64_t column_count = std::min(kLanes, end - column);
      Floats sums[TokenGroup::kSize];
      weigh(group.count, rows, up, adapter.part_ranks[part], size, column, column_count, sums);
      for (int64_t token = 0; token < group.count; ++token) {
        const int64_t row = output_.is_compact ? index * TokenGroup::kSize + token : group.tokens[token];
        store_part(output_.wide + row * out_count + first_output + column, sums[token], column_count);
      }
    }
  }

 private:
  static constexpr int64_t kOutputsPerTask = 256;

  static int64_t piece_count(int64_t size) { return (size + kOutputsPerTask - 1) / kOutputsPerTask; }

  float* narrow_row(int64_t group, int64_t token) const {
    return output_.narrow + (group * TokenGroup::kSize + token) * output_.widest_rank;
  }

  const T* input_;
  int64_t token_stride_;
  const std::vector<TokenGroup>& groups_;
  const LowRankWeights<T>* adapters_;
  const LowRankSizes& sizes_;
  const LowRankOutput& output_;
  int64_t columns_per_group_;
  int64_t pieces_per_group_;
};

}  // namespace headrace
