// Products with a matrix whose columns lie in panels of 32, in the order in which a product reads them.
//
// A panel holds 32 outputs: for float32 [in][32]; for bfloat16 [in / 32][2][in pair][16][2], which is two tiles of AMX
// after another, and at the same time what AVX-512's dot product of bfloat16 pairs takes; for bytes that tiles multiply
// [in / 64][2][in quad][16][4]. `in` is padded with zeros to whole steps: a multiple of 32, or 64.
//
// NOTE: every output is summed over `in` in one order, whatever the number of rows. So what a row gives does not
// depend, to the last bit, on the rows beside it. Libraries choose another order for another number of rows.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tile_byte.h"
#include "vector.h"

#if defined(__AMX_BF16__)
#include "few_queries.h"
#include "tiles.h"
#endif

namespace headrace {

constexpr int64_t kPanelWidth = 32;
constexpr int64_t kPanelDepth = 32;
constexpr int64_t kRowBlock = 32;

// How far ahead of its use a panel is fetched: about what memory delivers during its latency. Whole steps of depth.
constexpr int64_t kFetchAheadBytes = 4096;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Where element (in, out) of a panel lies.
template <typename T>
inline int64_t panel_offset(int64_t in, int64_t out);

template <>
inline int64_t panel_offset<float>(int64_t in, int64_t out) {
  return in * kPanelWidth + out;
}

template <>
inline int64_t panel_offset<BFloat16>(int64_t in, int64_t out) {
  return in / 32 * 1024 + out / 16 * 512 + in % 32 / 2 * 32 + out % 16 * 2 + in % 2;
}

// Eight-bit weights lie so that 16 of them widen to the first, or the second, elements of 16 pairs.
template <>
inline int64_t panel_offset<int8_t>(int64_t in, int64_t out) {
  return in / 32 * 1024 + out / 16 * 512 + in % 32 / 2 * 32 + in % 2 * 16 + out % 16;
}

template <>
inline int64_t panel_offset<TileByte>(int64_t in, int64_t out) {
  return in / 64 * 2048 + out / 16 * 1024 + in % 64 / 4 * 64 + out % 16 * 4 + in % 4;
}

struct PanelSums {
  Floats low;
  Floats high;
};

// `sums += rows * panel` over the 32 elements of each row from `in` on.
template <int kRowCount>
inline void multiply_step(const float* rows, int64_t row_stride, const float* panel, int64_t in, PanelSums* sums) {
  for (int64_t depth = in; depth < in + kPanelDepth; ++depth) {
    const Floats low = load(panel + depth * kPanelWidth);
    const Floats high = load(panel + depth * kPanelWidth + kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRowCount; ++row) {
      const Floats factor = broadcast(rows[row * row_stride + depth]);
      sums[row].low += factor * low;
      sums[row].high += factor * high;
    }
  }
}

template <int kRowCount>
inline void multiply_step(const BFloat16* rows, int64_t row_stride, const BFloat16* panel, int64_t in,
                          PanelSums* sums) {
  const BFloat16* tiles = panel + in * kPanelWidth;
  for (int64_t pair = 0; pair < kPanelDepth / 2; ++pair) {
    const Words low = load_words(tiles + pair * 32);
    const Words high = load_words(tiles + 512 + pair * 32);
#pragma GCC unroll 8
    for (int row = 0; row < kRowCount; ++row) {
      const BFloat16* factors = rows + row * row_stride + in + pair * 2;
      sums[row].low = add_pair_products(sums[row].low, factors, low);
      sums[row].high = add_pair_products(sums[row].high, factors, high);
    }
  }
}

template <int kRowCount, typename T, typename Meanwhile>
inline void multiply_rows(const T* rows, int64_t row_stride, const T* panel, int64_t depth, float* product,
                          int64_t product_stride, const Meanwhile& meanwhile) {
  PanelSums sums[kRowCount] = {};
  for (int64_t in = 0; in < depth; in += kPanelDepth) {
    multiply_step<kRowCount>(rows, row_stride, panel, in, sums);
    meanwhile();
  }
  for (int row = 0; row < kRowCount; ++row) {
    store(product + row * product_stride, sums[row].low);
    store(product + row * product_stride + kLanes, sums[row].high);
  }
}

#if !defined(__AVX512F__)
#if defined(__AVX__)
constexpr int64_t kShortLanes = 8;
#else
constexpr int64_t kShortLanes = 4;
#endif
typedef float ShortFloats __attribute__((vector_size(kShortLanes * sizeof(float))));

// The same sums in vectors that the processor has.
// NOTE: longer ones are split, but arrays of them stay in memory, and so do these unless every loop over them is
// unrolled, the stores included. The products took fifteen times as long, with AVX2 thirty.
template <int kRowCount, typename Meanwhile>
inline void multiply_rows(const float* rows, int64_t row_stride, const float* panel, int64_t depth, float* product,
                          int64_t product_stride, const Meanwhile& meanwhile) {
  constexpr int kPartCount = kPanelWidth / kShortLanes;
  ShortFloats sums[kRowCount][kPartCount] = {};
  for (int64_t in = 0; in < depth; in += kPanelDepth) {
    for (int64_t place = in; place < in + kPanelDepth; ++place) {
#pragma GCC unroll 8
      for (int part = 0; part < kPartCount; ++part) {
        ShortFloats column;
        std::memcpy(&column, panel + place * kPanelWidth + part * kShortLanes, sizeof(column));
#pragma GCC unroll 2
        for (int row = 0; row < kRowCount; ++row) sums[row][part] += rows[row * row_stride + place] * column;
      }
    }
    meanwhile();
  }
#pragma GCC unroll 2
  for (int row = 0; row < kRowCount; ++row)
#pragma GCC unroll 8
    for (int part = 0; part < kPartCount; ++part)
      std::memcpy(product + row * product_stride + part * kShortLanes, &sums[row][part], sizeof(ShortFloats));
}
#endif

// A panel as a product reads it. One that is made while it is read need not be kept as a whole: the step for depth `in`
// lies where that of `in & depth_mask` would.
template <typename T>
struct PanelView {
  const T* steps;
  int64_t depth_mask = -1;
  // Whether the first-level cache is the panel's alone: the rows pass by.
  bool rows_pass_by = false;
};

// Multiplies by panels on one thread. The tiles of AMX, where there are some, are this object's while it lives.
template <typename T>
class PanelProduct {
 public:
  // Whether a product goes through a panel once, whatever the number of rows. Only then may it be kept in part.
  static constexpr bool kReadsPanelOnce = false;

  // product[row][:32] = rows[row][depth] @ panel, for at most kRowBlock rows. `meanwhile` is called about every 32
  // elements of depth, for work that fills the gaps of this. When the panel comes from memory, `ahead` is the panel
  // that is wanted after it: both are fetched ahead of their use. Else it is null.
  template <typename Meanwhile>
  void multiply(const T* rows, int64_t row_stride, int64_t row_count, PanelView<T> panel, int64_t depth, const T* ahead,
                float* product, int64_t product_stride, const Meanwhile& meanwhile) {
    // The processor's own prefetching keeps up with these slower products.
    (void)ahead;
    int64_t row = 0;
    for (; row + kRowsAtOnce <= row_count; row += kRowsAtOnce)
      multiply_rows<kRowsAtOnce>(rows + row * row_stride, row_stride, panel.steps, depth,
                                 product + row * product_stride, product_stride, meanwhile);
    for (; row < row_count; ++row)
      multiply_rows<1>(rows + row * row_stride, row_stride, panel.steps, depth, product + row * product_stride,
                       product_stride, meanwhile);
  }

 private:
  // As many sums as there are registers for.
#if defined(__AVX512F__)
  static constexpr int kRowsAtOnce = 8;
#elif defined(__AVX__)
  static constexpr int kRowsAtOnce = 2;
#else
  static constexpr int kRowsAtOnce = 1;
#endif
};

#if defined(__AMX_BF16__)
template <>
class PanelProduct<BFloat16> {
 public:
  static constexpr bool kReadsPanelOnce = true;

  PanelProduct() = default;
  PanelProduct(const PanelProduct&) = delete;
  PanelProduct& operator=(const PanelProduct&) = delete;
  ~PanelProduct() {
    if (row_count_ != 0) release_tiles();
  }

  // Of bfloat16, or of bytes, whose sums are integers; their steps are 64 deep.
  template <typename E, typename Meanwhile>
  void multiply(const E* rows, int64_t row_stride, int64_t row_count, std::type_identity_t<PanelView<E>> panel,
                int64_t depth, const std::type_identity_t<E>* ahead, typename TileProducts<E>::Sum* product,
                int64_t product_stride, const Meanwhile& meanwhile) {
    if (row_count != row_count_ || column_count_ != 0) {
      configure_tiles(row_count);
      row_count_ = row_count;
      column_count_ = 0;
    }
    if (panel.rows_pass_by) {
      multiply_rows<true>(rows, row_stride, row_count, panel, depth, ahead, product, product_stride, meanwhile);
    } else {
      multiply_rows<false>(rows, row_stride, row_count, panel, depth, ahead, product, product_stride, meanwhile);
    }
  }

  // Shapes the tiles for the functions in few_queries.h.
  void shape_for_few_queries(int64_t query_count, int64_t column_count) {
    if (query_count == row_count_ && column_count == column_count_) return;
    configure_few_queries(query_count, column_count);
    row_count_ = query_count;
    column_count_ = column_count;
  }

 private:
  template <bool kPassesBy, typename E, typename Meanwhile>
  static void multiply_rows(const E* rows, int64_t row_stride, int64_t row_count, PanelView<E> panel, int64_t depth,
                            const E* ahead, typename TileProducts<E>::Sum* product, int64_t product_stride,
                            const Meanwhile& meanwhile) {
    constexpr int64_t kFetchAhead = kFetchAheadBytes / sizeof(E);
    if (row_count <= 16) {
      multiply_tiles<1, kPassesBy>(rows, row_stride, panel.steps, panel.depth_mask, depth, ahead, kFetchAhead, product,
                                   product_stride, meanwhile);
    } else {
      multiply_tiles<2, kPassesBy>(rows, row_stride, panel.steps, panel.depth_mask, depth, ahead, kFetchAhead, product,
                                   product_stride, meanwhile);
    }
  }

  // What the tiles are shaped for; 0 rows before they are.
  int64_t row_count_ = 0;
  // Of few_queries.h; 0 for products of rows with panels.
  int64_t column_count_ = 0;
};
#endif

}  // namespace headrace
