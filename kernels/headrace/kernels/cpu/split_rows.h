// The rows of an input as sums of two numbers of eight bits, which the tiles of AMX multiply exactly.
//
// Element x of a row becomes (high + low / 254) * largest / 127, where `largest` is the row's largest magnitude. What
// that leaves of an element is at most a 64,516th of `largest`, about what bfloat16 rounds away of an element a
// 126th as large.
//
// NOTE: one number of eight bits is what others multiply by. A few elements of a hidden state are often a hundred times
// as large as the rest, of which then nothing is left. The second number costs no time where a step waits for memory,
// and with many rows two products of bytes take as long as one of bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bfloat16.h"
#include "panel_product.h"
#include "tile_byte.h"
#include "vector.h"

namespace headrace {

// Rows lie in groups of the same size, as many as two tiles hold with both their parts: [group][part][row][depth].
class SplitRows {
 public:
  typedef TileByte Element;
  typedef int32_t Sum;

  // Bytes for so many rows, or fewer.
  static int64_t capacity(int64_t row_count, int64_t depth) { return 2 * round_up(row_count, kRowsPerGroup) * depth; }

  // `factors` [row] and `parts` are filled by `split`. `depth` is whole steps of a panel.
  SplitRows(TileByte* parts, float* factors, int64_t row_count, int64_t depth)
      : parts_(parts), factors_(factors), depth_(depth) {
    const int64_t group_count = (row_count + kRowsPerGroup - 1) / kRowsPerGroup;
    rows_per_group_ = std::max<int64_t>((row_count + group_count - 1) / std::max<int64_t>(group_count, 1), 1);
  }

  // Splits a row of `in_count` elements. Calls look(elements, what their parts leave of them) for each vector. A row
  // with an element that is not finite has no parts, and a factor that is no number.
  template <typename Look>
  void split(int64_t row, const BFloat16* input, int64_t in_count, const Look& look) const {
    int8_t* high = reinterpret_cast<int8_t*>(parts_ + (row / rows_per_group_ * rows_per_group_ + row) * depth_);
    int8_t* low = high + rows_per_group_ * depth_;
    const float factor = factor_of(input, in_count);
    const float inverse = 1.0f / factor;
    const Floats low_inverse = broadcast(inverse * kLowSteps);
    const Floats low_factor = broadcast(factor / kLowSteps);
    for (int64_t in = 0; in < depth_; in += kLanes) {
      const Floats elements = load_at_most(input + in, in_count - in);
      const Floats whole = round(elements * inverse);
      const Floats rest = elements - whole * factor;
      const Floats part = round(rest * low_inverse);
      store_bytes(high + in, whole);
      store_bytes(low + in, part);
      look(elements, rest - part * low_factor);
    }
    factors_[row] = factor;
  }

  void split(int64_t row, const BFloat16* input, int64_t in_count) const {
    split(row, input, in_count, [](Floats, Floats) {});
  }

  // At most so many rows are multiplied at once, from a multiple of it on.
  int64_t rows_per_block() const { return rows_per_group_; }
  // Bytes of a row.
  static int64_t row_bytes(int64_t depth) { return 2 * depth; }
  int64_t stride() const { return depth_; }

  const TileByte* block(int64_t row) const { return parts_ + 2 * row * depth_; }

  // How many lines the product of a block of so many rows takes: all that a group has room for, also the last.
  int64_t line_count(int64_t) const { return 2 * rows_per_group_; }

  // Returns 16 sums of row `place` of the block that begins at `first_row`. `sums` are those of the block's first line,
  // and lines are `stride` apart.
  Floats sums_of_row(const int32_t* sums, int64_t stride, int64_t first_row, int64_t place) const {
    const float factor = factors_[first_row + place];
    return load_integers(sums + place * stride) * factor +
           load_integers(sums + (rows_per_group_ + place) * stride) * (factor / kLowSteps);
  }

 private:
  static constexpr int64_t kRowsPerGroup = 16;
  static constexpr float kLargest = 127.0f;
  static constexpr float kLowSteps = 254.0f;

  // Below it a factor's inverse would overflow. What is lost of a row then is less than a bfloat16 of 1e-34.
  static constexpr float kSmallestFactor = 1e-32f;

  static float factor_of(const BFloat16* input, int64_t in_count) {
    Floats magnitudes = {};
    // Zeros, unless an element is not finite.
    Floats zeros = {};
    for (int64_t in = 0; in < in_count; in += kLanes) {
      const Floats elements = load_at_most(input + in, in_count - in);
      magnitudes = maximum(magnitudes, elements < 0.0f ? -elements : elements);
      zeros += elements * 0.0f;
    }
    return std::max(largest(magnitudes) / kLargest, kSmallestFactor) + sum(zeros);
  }

  static Floats round(Floats values) {
    return reinterpret_cast<Floats>(
        _mm512_roundscale_ps(reinterpret_cast<__m512>(values), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Of whole numbers; those that a byte has no room for become the nearest that it has.
  static void store_bytes(int8_t* target, Floats whole) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(reinterpret_cast<__m512>(whole))));
  }

  static Floats load_integers(const int32_t* source) {
    return reinterpret_cast<Floats>(_mm512_cvtepi32_ps(_mm512_loadu_si512(source)));
  }

  TileByte* parts_;
  float* factors_;
  int64_t depth_;
  int64_t rows_per_group_;
};

}  // namespace headrace
