// Linear layers over packed weights.
#pragma once

#include <cstdint>

namespace headrace {

struct LinearShape {
  int64_t row_count;
  int64_t row_stride;  // of the input, in elements
  int64_t in_count;
  int64_t out_count;  // rows of the weight, the gates included
  bool is_gated;

  int64_t output_width() const { return is_gated ? out_count / 2 : out_count; }
};

// Elements of a packed weight.
int64_t packed_size(const LinearShape& shape);

// Copies weight [out, in] into `panels`, which are zeroed. When gated, panel i holds 16 gates and the 16 outputs that they gate.
template <typename T>
void pack_weight(const T* weight, int64_t weight_stride, const LinearShape& shape, T* panels);

// output [row, out] = input @ weight.T + bias; when gated [row, out / 2], silu(first half) * second half of that.
template <typename T>
void linear(const T* input, const T* panels, const T* bias, const LinearShape& shape, T* output);

}  // namespace headrace
