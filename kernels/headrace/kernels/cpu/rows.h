// Operators that take each token for itself.
#pragma once

#include <cstdint>

namespace headrace {

// output = input / sqrt(mean(input**2) + epsilon) * weight, for contiguous rows.
template <typename T>
void rms_norm(const T* input, const T* weight, float epsilon, int64_t row_count, int64_t width, T* output);

// sum += x; x = rms_norm(sum).
template <typename T>
void add_rms_norm(T* x, T* sum, const T* weight, float epsilon, int64_t row_count, int64_t width);

// output[row, width] = silu(input[row, :width]) * input[row, width:].
template <typename T>
void silu_mul(const T* input, int64_t row_count, int64_t width, T* output);

struct RotaryShape {
  int64_t token_count;
  int64_t head_count;
  int64_t kv_head_count;
  int64_t head_size;
  int64_t rotary_size;
  int64_t block_size;
  // Elements from one token to the next.
  int64_t query_stride;
  int64_t key_stride;
  int64_t value_stride;
  int64_t rotated_stride;
};

template <typename T>
struct RotaryTensors {
  const T* query;
  const T* key;
  const T* value;
  const int64_t* positions;
  const float* cos_sin;
  const int64_t* slot_ids;
  T* key_cache;
  T* value_cache;
  T* rotated_query;
};

// Rotates queries to `rotated_query`, which may be where they are, and keys to the cache with the values.
template <typename T>
void rotary_and_write_kv(const RotaryTensors<T>& tensors, const RotaryShape& shape);

}  // namespace headrace
