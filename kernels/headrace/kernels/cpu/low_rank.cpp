#include "low_rank.h"

#include <algorithm>

#include "bfloat16.h"
#include "row_functions.h"
#include "threads.h"
#include "vector.h"

namespace headrace {
namespace {

// Tokens of one adapter that are computed together, so that its weights are read once for all of them.
constexpr int64_t kTokensAtOnce = 4;
// Outputs of a task.
constexpr int64_t kOutputsPerTask = 256;
// Fewer products than this are done sooner than another thread is called.
constexpr int64_t kProductsPerThread = 32 * 1024;

struct Group {
  int64_t adapter;
  int64_t tokens[kTokensAtOnce];
  int64_t count;
};

// A piece of one part's outputs, for one group.
struct Piece {
  int64_t group;
  int64_t part;
  int64_t begin;
  int64_t end;
};

std::vector<Group> group_tokens(const int64_t* token_adapters, int64_t token_count, int64_t adapter_count) {
  std::vector<Group> groups;
  std::vector<int64_t> open(adapter_count, -1);
  for (int64_t token = 0; token < token_count; ++token) {
    const int64_t adapter = token_adapters[token];
    if (adapter < 0) continue;
    if (open[adapter] < 0 || groups[open[adapter]].count == kTokensAtOnce) {
      open[adapter] = static_cast<int64_t>(groups.size());
      groups.push_back({adapter, {}, 0});
    }
    Group& group = groups[open[adapter]];
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

int64_t offset_of(const int64_t* counts, int64_t part) {
  int64_t offset = 0;
  for (int64_t before = 0; before < part; ++before) offset += counts[before];
  return offset;
}

}  // namespace

template <typename T>
void low_rank(const T* input, const int64_t* token_adapters, const std::vector<LowRankWeights<T>>& adapters,
              const LowRankShape& shape, float* output) {
  std::fill_n(output, shape.token_count * shape.out_count, 0.0f);
  const std::vector<Group> groups =
      group_tokens(token_adapters, shape.token_count, static_cast<int64_t>(adapters.size()));
  int64_t widest = 0;
  for (const LowRankWeights<T>& adapter : adapters) widest = std::max(widest, adapter.rank);
  // [group][token][rank]
  std::vector<float> narrow_rows(groups.size() * kTokensAtOnce * widest);
  const auto narrow_row = [&](int64_t group, int64_t token) {
    return narrow_rows.data() + (group * kTokensAtOnce + token) * widest;
  };
  const int64_t columns_of_widest = widest / kLanes;
  const int64_t down_count = static_cast<int64_t>(groups.size()) * columns_of_widest;
  parallel_shares(down_count, down_count * kLanes * shape.in_count / kProductsPerThread, [&](Share share) {
    for (int64_t task = share.begin; task < share.end; ++task) {
      const int64_t index = task / columns_of_widest;
      const Group& group = groups[index];
      const LowRankWeights<T>& adapter = adapters[group.adapter];
      const int64_t column = task % columns_of_widest * kLanes;
      if (column >= adapter.rank) continue;
      const T* rows[kTokensAtOnce];
      for (int64_t token = 0; token < group.count; ++token)
        rows[token] = input + group.tokens[token] * shape.token_stride;
      Floats sums[kTokensAtOnce];
      weigh(group.count, rows, adapter.down, shape.in_count, adapter.rank, column, kLanes, sums);
      for (int64_t token = 0; token < group.count; ++token) store(narrow_row(index, token) + column, sums[token]);
    }
  });

  std::vector<Piece> pieces;
  int64_t product_count = 0;
  for (int64_t index = 0; index < static_cast<int64_t>(groups.size()); ++index)
    for (int64_t part = 0; part < static_cast<int64_t>(shape.part_sizes.size()); ++part) {
      const int64_t rank = adapters[groups[index].adapter].part_ranks[part];
      if (rank == 0) continue;
      product_count += rank * shape.part_sizes[part];
      for (int64_t begin = 0; begin < shape.part_sizes[part]; begin += kOutputsPerTask)
        pieces.push_back({index, part, begin, std::min(begin + kOutputsPerTask, shape.part_sizes[part])});
    }
  const int64_t piece_count = static_cast<int64_t>(pieces.size());
  parallel_shares(piece_count, product_count / kProductsPerThread, [&](Share share) {
    for (int64_t task = share.begin; task < share.end; ++task) {
      const Piece& piece = pieces[task];
      const Group& group = groups[piece.group];
      const LowRankWeights<T>& adapter = adapters[group.adapter];
      const int64_t rank = adapter.part_ranks[piece.part];
      const int64_t size = shape.part_sizes[piece.part];
      const T* up = adapter.up;
      for (int64_t before = 0; before < piece.part; ++before)
        up += adapter.part_ranks[before] * shape.part_sizes[before];
      const float* rows[kTokensAtOnce];
      for (int64_t token = 0; token < group.count; ++token)
        rows[token] = narrow_row(piece.group, token) + offset_of(adapter.part_ranks, piece.part);
      const int64_t first_output = offset_of(shape.part_sizes.data(), piece.part);
      for (int64_t column = piece.begin; column < piece.end; column += kLanes) {
        const int64_t column_count = std::min(kLanes, piece.end - column);
        Floats sums[kTokensAtOnce];
        weigh(group.count, rows, up, rank, size, column, column_count, sums);
        for (int64_t token = 0; token < group.count; ++token)
          store_part(output + group.tokens[token] * shape.out_count + first_output + column, sums[token], column_count);
      }
    }
  });
}

#define INSTANTIATE(T)                                                                                            \
  template void low_rank<T>(const T*, const int64_t*, const std::vector<LowRankWeights<T>>&, const LowRankShape&, \
                            float*);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace headrace
