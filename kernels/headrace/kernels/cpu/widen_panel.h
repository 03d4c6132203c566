// Steps of panels of 8-bit integers become steps of the type that they are multiplied in.
#pragma once

#include <cstdint>

#include "panel_product.h"
#include "vector.h"

namespace headrace {

inline Floats load_bytes(const int8_t* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)))));
#else
  typedef int8_t Bytes __attribute__((vector_size(16)));
  Bytes bytes;
  std::memcpy(&bytes, source, sizeof(bytes));
  return __builtin_convertvector(bytes, Floats);
#endif
}

// NOTE: bfloat16 has the eight bits that a whole number up to 127 needs, so nothing is rounded here; the scale of an
// output is applied to its sum.
inline void widen_step(const int8_t* step, BFloat16* target) {
  for (int64_t offset = 0; offset < kPanelDepth * kPanelWidth; offset += 32) {
    const Words first = reinterpret_cast<Words>(load_bytes(step + offset)) >> 16;
    store_words(target + offset, first | reinterpret_cast<Words>(load_bytes(step + offset + 16)));
  }
}

inline void widen_step(const int8_t* step, float* target) {
  for (int64_t in = 0; in < kPanelDepth; in += 2)
    for (int64_t out = 0; out < kPanelWidth; out += kLanes) {
      const int8_t* pairs = step + panel_offset<int8_t>(in, out);
      store(target + panel_offset<float>(in, out), load_bytes(pairs));
      store(target + panel_offset<float>(in + 1, out), load_bytes(pairs + kLanes));
    }
}

}  // namespace headrace
