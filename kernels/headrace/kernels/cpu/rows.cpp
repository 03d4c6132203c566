#include "rows.h"

#include "row_functions.h"
#include "threads.h"

namespace headrace {
namespace {

// Fewer elements than this are done sooner than another thread is called.
constexpr int64_t kElementsPerThread = 8 * 1024;

int64_t threads_for(int64_t element_count) { return element_count / kElementsPerThread; }

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
    for (int64_t row = share.begin; row < share.end; ++row)
      add_and_normalise(x + row * width, sum + row * width, weight, epsilon, width);
  });
}

template <typename T>
void silu_mul(const T* input, int64_t row_count, int64_t width, T* output) {
  parallel_shares(row_count, threads_for(row_count * width), [&](Share share) {
    for (int64_t row = share.begin; row < share.end; ++row) {
      const T* gates = input + row * 2 * width;
      for_each_vector(width, [&](int64_t offset, int64_t count) {
        const Floats gate = load_part(gates + offset, count);
        store_part(output + row * width + offset, silu<T>(gate) * load_part(gates + width + offset, count), count);
      });
    }
  });
}

template <typename T>
void rotary_and_write_kv(const RotaryTensors<T>& tensors, const RotaryShape& shape) {
  const int64_t elements_per_token = (shape.head_count + 2 * shape.kv_head_count) * shape.head_size;
  parallel_shares(shape.token_count, threads_for(shape.token_count * elements_per_token), [&](Share share) {
    for (int64_t token = share.begin; token < share.end; ++token) rotate_and_write(tensors, shape, token);
  });
}

#define INSTANTIATE(T)                                                        \
  template void rms_norm<T>(const T*, const T*, float, int64_t, int64_t, T*); \
  template void add_rms_norm<T>(T*, T*, const T*, float, int64_t, int64_t);   \
  template void silu_mul<T>(const T*, int64_t, int64_t, T*);                  \
  template void rotary_and_write_kv<T>(const RotaryTensors<T>&, const RotaryShape&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace headrace
