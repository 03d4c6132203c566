// Attention of a few query rows, as in decoding: keys are multiplied where they lie in the cache.
//
// A product of tiles wants one factor's rows as they are and the other's as columns. With hundreds of query rows it is
// the keys that are turned into columns, once for all rows. With a handful that takes longer than all the rest, so here
// the queries are: what comes out has a row for each key, and is small enough to be turned.
//
// NOTE: the sums are the same, to the last bit, whichever factor is which.
#pragma once

#include <cstring>

#include "tiles.h"

namespace headrace {

// Tiles 0 and 1 hold the scores of 16 keys each, 2 the queries as columns, 3 the weights, 4 and 5 keys or a panel of
// values, 6 and 7 the weighted values. `column_count` is the number of queries with padding.
inline void configure_few_queries(int64_t query_count, int64_t column_count) {
  TileShapes shapes;
  shapes.set({0, 1, 2}, 16, column_count * 4);
  shapes.set({3, 6, 7}, query_count, 64);
  shapes.set({4, 5}, 16, 64);
  shapes.load();
}

// Writes rows of `size` elements, a multiple of 32, as columns of pairs: [size / 2][column_count][2].
inline void turn_queries(const BFloat16* rows, int64_t row_stride, int64_t query_count, int64_t size,
                         int64_t column_count, BFloat16* columns) {
  for (int64_t query = 0; query < query_count; ++query)
    for (int64_t pair = 0; pair < size / 2; ++pair)
      std::memcpy(columns + (pair * column_count + query) * 2, rows + query * row_stride + pair * 2,
                  2 * sizeof(BFloat16));
}

// Turns [16 keys][kColumnCount] into the first rows of [query][row_stride].
template <int kColumnCount>
inline void turn_scores(const float* scores, int64_t query_count, float* rows, int64_t row_stride) {
  constexpr int kKeysPerVector = 16 / kColumnCount;
  // Lane i of what is picked from two vectors is that of key i % (2 * kKeysPerVector).
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Ints first = lanes % (2 * kKeysPerVector) * kColumnCount;
  for (int64_t query = 0; query < query_count; ++query) {
    const __m512i picked = reinterpret_cast<__m512i>(first + static_cast<int32_t>(query));
    __m512 row = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int pair = 0; pair < kColumnCount / 2; ++pair) {
      const __m512 low = _mm512_loadu_ps(scores + pair * 32);
      const __m512 high = _mm512_loadu_ps(scores + pair * 32 + 16);
      const auto mask = static_cast<__mmask16>(((1u << (2 * kKeysPerVector)) - 1) << (pair * 2 * kKeysPerVector));
      row = _mm512_mask_mov_ps(row, mask, _mm512_permutex2var_ps(low, picked, high));
    }
    _mm512_storeu_ps(rows + query * row_stride, row);
  }
}

// Scores of 32 keys for the queries in `columns`, to [query][32]. The keys are two runs of 16 in memory.
template <int kColumnCount>
inline void score_few(const BFloat16* columns, int64_t query_count, int64_t size, const BFloat16* first_keys,
                      const BFloat16* second_keys, float* scores) {
  const int64_t key_bytes = size * static_cast<int64_t>(sizeof(BFloat16));
  alignas(64) float by_key[2][16 * kColumnCount];
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t element = 0; element < size; element += 32) {
    _tile_loadd(2, columns + element * kColumnCount, kColumnCount * 4);
    _tile_loadd(4, first_keys + element, key_bytes);
    _tile_dpbf16ps(0, 4, 2);
    _tile_loadd(5, second_keys + element, key_bytes);
    _tile_dpbf16ps(1, 5, 2);
  }
  _tile_stored(0, by_key[0], kColumnCount * 4);
  _tile_stored(1, by_key[1], kColumnCount * 4);
  turn_scores<kColumnCount>(by_key[0], query_count, scores, 32);
  turn_scores<kColumnCount>(by_key[1], query_count, scores + 16, 32);
}

// values[query][:32] = weights[query][key_count] @ panel.
inline void weigh_few(const BFloat16* weights, int64_t weight_stride, const BFloat16* panel, int64_t key_count,
                      float* values, int64_t value_stride) {
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t key = 0; key < key_count; key += 32) {
    _tile_loadd(3, weights + key, weight_stride * 2);
    _tile_loadd(4, panel + key * 32, 64);
    _tile_dpbf16ps(6, 3, 4);
    _tile_loadd(5, panel + key * 32 + 512, 64);
    _tile_dpbf16ps(7, 3, 5);
  }
  _tile_stored(6, values, value_stride * 4);
  _tile_stored(7, values + 16, value_stride * 4);
}

}  // namespace headrace
