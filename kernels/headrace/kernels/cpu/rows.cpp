#include "rows.h"

#include "threads.h"
#include "vector.h"

namespace headrace {
namespace {

// Fewer elements than this are done sooner than another thread is called.
constexpr int64_t kElementsPerThread = 8 * 1024;

int64_t threads_for(int64_t element_count) { return element_count / kElementsPerThread; }

// Calls body(offset, count) for each vector of a row; count is kLanes but for the last.
template <typename Body>
void for_each_vector(int64_t width, const Body& body) {
  int64_t offset = 0;
  for (; offset + kLanes <= width; offset += kLanes) body(offset, kLanes);
  if (offset < width) body(offset, width - offset);
}

template <typename T>
Floats load_part(const T* source, int64_t count) {
  return count == kLanes ? load(source) : load_first(source, count);
}

template <typename T>
void store_part(T* target, Floats values, int64_t count) {
  if (count == kLanes) {
    store(target, values);
  } else {
    store_first(target, values, count);
  }
}

template <typename T>
void normalise(const T* input, const T* weight, float epsilon, int64_t width, T* output) {
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

// Rotates one head; `target` may be anywhere but in `source`.
template <typename T>
void rotate(const T* source, const float* cos_sin, const RotaryShape& shape, T* target) {
  const int64_t half = shape.rotary_size / 2;
  for_each_vector(half, [&](int64_t offset, int64_t count) {
    const Floats cosines = load_part(cos_sin + offset, count);
    const Floats sines = load_part(cos_sin + half + offset, count);
    const Floats first = load_part(source + offset, count);
    const Floats second = load_part(source + half + offset, count);
    store_part(target + offset, first * cosines - second * sines, count);
    store_part(target + half + offset, second * cosines + first * sines, count);
  });
  std::memcpy(target + shape.rotary_size, source + shape.rotary_size,
              (shape.head_size - shape.rotary_size) * sizeof(T));
}

}  // namespace

template <typename T>
void rms_norm(const T* input, const T* weight, float epsilon, int64_t row_count, int64_t width, T* output) {
  parallel_shares(row_count, threads_for(row_count * width), [&](Share share) {
    for (int64_t row = share.begin; row < share.end; ++row)
      normalise(input + row * width, weight, epsilon, width, output + row * width);
  });
}

template <typename T>
void add_rms_norm(T* x, T* sum, const T* weight, float epsilon, int64_t row_count, int64_t width) {
  parallel_shares(row_count, threads_for(row_count * width), [&](Share share) {
    for (int64_t row = share.begin; row < share.end; ++row) {
      T* sum_row = sum + row * width;
      for_each_vector(width, [&](int64_t offset, int64_t count) {
        const Floats added = load_part(x + row * width + offset, count) + load_part(sum_row + offset, count);
        store_part(sum_row + offset, added, count);
      });
      normalise(sum_row, weight, epsilon, width, x + row * width);
    }
  });
}

template <typename T>
void silu_mul(const T* input, int64_t row_count, int64_t width, T* output) {
  parallel_shares(row_count, threads_for(row_count * width), [&](Share share) {
    for (int64_t row = share.begin; row < share.end; ++row) {
      const T* gates = input + row * 2 * width;
      for_each_vector(width, [&](int64_t offset, int64_t count) {
        const Floats gate = load_part(gates + offset, count);
        store_part(output + row * width + offset, silu(gate) * load_part(gates + width + offset, count), count);
      });
    }
  });
}

template <typename T>
void rotary_and_write_kv(const RotaryTensors<T>& tensors, const RotaryShape& shape) {
  const int64_t size = shape.head_size;
  const int64_t elements_per_token = (shape.head_count + 2 * shape.kv_head_count) * size;
  parallel_shares(shape.token_count, threads_for(shape.token_count * elements_per_token), [&](Share share) {
    for (int64_t token = share.begin; token < share.end; ++token) {
      const float* cos_sin = tensors.cos_sin + tensors.positions[token] * shape.rotary_size;
      for (int64_t head = 0; head < shape.head_count; ++head)
        rotate(tensors.query + token * shape.query_stride + head * size, cos_sin, shape,
               tensors.rotated_query + (token * shape.head_count + head) * size);
      const int64_t block = tensors.slot_ids[token] / shape.block_size;
      const int64_t offset = tensors.slot_ids[token] % shape.block_size;
      for (int64_t head = 0; head < shape.kv_head_count; ++head) {
        const int64_t slot = ((block * shape.kv_head_count + head) * shape.block_size + offset) * size;
        rotate(tensors.key + token * shape.key_stride + head * size, cos_sin, shape, tensors.key_cache + slot);
        std::memcpy(tensors.value_cache + slot, tensors.value + token * shape.value_stride + head * size,
                    size * sizeof(T));
      }
    }
  });
}

#define INSTANTIATE(T)                                                             \
  template void rms_norm<T>(const T*, const T*, float, int64_t, int64_t, T*);      \
  template void add_rms_norm<T>(T*, T*, const T*, float, int64_t, int64_t);        \
  template void silu_mul<T>(const T*, int64_t, int64_t, T*);                       \
  template void rotary_and_write_kv<T>(const RotaryTensors<T>&, const RotaryShape&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace headrace
