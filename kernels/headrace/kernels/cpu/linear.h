// Linear layers over packed weights.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "tile_byte.h"

namespace headrace {

struct TwelveBitStep;

struct LinearShape {
  int64_t row_count;
  int64_t row_stride;  // of the input, in elements
  int64_t in_count;
  int64_t out_count;  // rows of the weight, the gates included
  bool is_gated;

  int64_t output_width() const { return is_gated ? out_count / 2 : out_count; }
};

// What a weight of 8-bit integers is packed as for inputs of type T: what tiles multiply as it is, where there are
// some.
template <typename T>
struct IntegersFor {
  typedef int8_t Type;
};
#if defined(__AMX_INT8__)
template <>
struct IntegersFor<BFloat16> {
  typedef TileByte Type;
};
#endif

// Elements of a packed weight.
template <typename W>
int64_t packed_size(const LinearShape& shape);

// Copies weight [out, in] into `panels`, which are zeroed. When gated, panel i holds 16 gates and the 16 outputs that
// they gate.
template <typename W>
void pack_weight(const W* weight, int64_t weight_stride, const LinearShape& shape, W* panels);

// The same for a weight in blocks: values [out, in], scales [out, in / 32] and, if there are some, minima like them, in
// bits of the half-precision format. `in` is a multiple of 32.
template <typename W, typename V>
void pack_blocks(const V* values, const uint16_t* scales, const uint16_t* minima, const LinearShape& shape, W* panels);

// The same for a weight of bfloat16, without loss in twelve bits for each element. Returns false where that cannot be
// done; `panels` are of no use then.
bool pack_twelve_bits(const BFloat16* weight, int64_t weight_stride, const LinearShape& shape, TwelveBitStep* panels);

// Turns steps of twelve bits back into the steps that `pack_weight` would have made.
void expand_twelve_bits(const TwelveBitStep* steps, int64_t step_count, BFloat16* panels);

template <typename T, typename W>
struct LinearTensors {
  const T* input;
  const W* panels;
  // Factor of each of the weight's rows, or null.
  const float* scales;
  // Addend of each of the weight's rows, or null.
  const T* bias;
  T* output;
  // [row, out], added to each row before the gating, or null.
  const float* added = nullptr;
  // [row] the row of `added` for each row, -1 for none; null where they are the same.
  const int64_t* added_rows = nullptr;
};

// output [row, out] = input @ weight.T * scales + bias + added; when gated [row, out / 2], silu(first half) * second
// half of that. The weight is of the input's type T, of 8-bit integers, or of the steps in block_steps.h, or in
// twelve_bit_steps.h. With a weight of TileByte the input is rounded as split_rows.h says.
template <typename T, typename W>
void linear(const LinearTensors<T, W>& tensors, const LinearShape& shape);

}  // namespace headrace
