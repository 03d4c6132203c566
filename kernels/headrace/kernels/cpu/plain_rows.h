// The rows of an input, which a product takes as they are.
#pragma once

#include <cstdint>

#include "panel_product.h"
#include "vector.h"

namespace headrace {

template <typename T>
class PlainRows {
 public:
  typedef T Element;
  typedef float Sum;

  PlainRows(const T* first, int64_t stride) : first_(first), stride_(stride) {}

  // At most so many rows are multiplied at once.
  static constexpr int64_t rows_per_block() { return kRowBlock; }
  // Bytes of a row.
  static int64_t row_bytes(int64_t depth) { return depth * static_cast<int64_t>(sizeof(T)); }
  int64_t stride() const { return stride_; }

  const T* block(int64_t row) const { return first_ + row * stride_; }

  // How many lines the product of a block of so many rows takes.
  static int64_t line_count(int64_t row_count) { return row_count; }

  // Returns 16 sums of row `place` of a block. `sums` are those of its first row, and rows are `stride` apart.
  static Floats sums_of_row(const float* sums, int64_t stride, int64_t, int64_t place) {
    return load(sums + place * stride);
  }

 private:
  const T* first_;
  int64_t stride_;
};

}  // namespace headrace
