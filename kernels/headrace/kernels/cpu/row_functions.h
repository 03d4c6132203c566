// What the operators that take each token for itself do with one of them.
#pragma once

#include <cmath>
#include <cstring>

#include "rows.h"
#include "vector.h"

namespace headrace {

// Calls body(offset, count) for each vector of a row; count is kLanes but for the last.
template <typename Body>
inline void for_each_vector(int64_t width, const Body& body) {
  int64_t offset = 0;
  for (; offset + kLanes <= width; offset += kLanes) body(offset, kLanes);
  if (offset < width) body(offset, width - offset);
}

template <typename T>
inline Floats load_part(const T* source, int64_t count) {
  return count == kLanes ? load(source) : load_first(source, count);
}

template <typename T>
inline void store_part(T* target, Floats values, int64_t count) {
  if (count == kLanes) {
    store(target, values);
  } else {
    store_first(target, values, count);
  }
}

template <typename T>
inline void normalise(const T* input, const T* weight, float epsilon, int64_t width, T* output) {
  Floats squares = {};
  for_each_vector(width, [&](int64_t offset, int64_t count) {
    const Floats values = load_part(input + offset, count);
    squares += values * values;
  });
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + epsilon);
  for_each_vector(width, [&](int64_t offset, int64_t count) {
    const Floats values = load_part(input + offset, count) * scale;
    store_part(output + offset, values * load_part(weight + offset, count), count);
  });
}

// Rotates one head; `target` may be `source`, but not overlap it otherwise.
template <typename T>
inline void rotate(const T* source, const float* cos_sin, const RotaryShape& shape, T* target) {
  const int64_t half = shape.rotary_size / 2;
  for_each_vector(half, [&](int64_t offset, int64_t count) {
    const Floats cosines = load_part(cos_sin + offset, count);
    const Floats sines = load_part(cos_sin + half + offset, count);
    const Floats first = load_part(source + offset, count);
    const Floats second = load_part(source + half + offset, count);
    store_part(target + offset, first * cosines - second * sines, count);
    store_part(target + half + offset, second * cosines + first * sines, count);
  });
  std::memmove(target + shape.rotary_size, source + shape.rotary_size,
               (shape.head_size - shape.rotary_size) * sizeof(T));
}

// sum += x; x = normalise(sum).
template <typename T>
inline void add_and_normalise(T* x, T* sum, const T* weight, float epsilon, int64_t width) {
  for_each_vector(width, [&](int64_t offset, int64_t count) {
    store_part(sum + offset, load_part(x + offset, count) + load_part(sum + offset, count), count);
  });
  normalise(sum, weight, epsilon, width, x);
}

// Rotates the heads of one token, and writes its keys and values to the cache.
template <typename T>
inline void rotate_and_write(const RotaryTensors<T>& tensors, const RotaryShape& shape, int64_t token) {
  const int64_t size = shape.head_size;
  const float* cos_sin = tensors.cos_sin + tensors.positions[token] * shape.rotary_size;
  for (int64_t head = 0; head < shape.head_count; ++head)
    rotate(tensors.query + token * shape.query_stride + head * size, cos_sin, shape,
           tensors.rotated_query + token * shape.rotated_stride + head * size);
  const int64_t block = tensors.slot_ids[token] / shape.block_size;
  const int64_t offset = tensors.slot_ids[token] % shape.block_size;
  for (int64_t head = 0; head < shape.kv_head_count; ++head) {
    const int64_t slot = ((block * shape.kv_head_count + head) * shape.block_size + offset) * size;
    rotate(tensors.key + token * shape.key_stride + head * size, cos_sin, shape, tensors.key_cache + slot);
    std::memcpy(tensors.value_cache + slot, tensors.value + token * shape.value_stride + head * size, size * sizeof(T));
  }
}

}  // namespace headrace
