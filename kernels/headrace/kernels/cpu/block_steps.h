// Weights as GGUF files keep them: blocks of 32 inputs of one output share a scale, and where there is one a minimum.
//
// A step of a panel holds the 32 blocks of 32 outputs. It is widened to what a product reads just before the product,
// so what comes from memory is a half or a third of it. A scale has 11 bits and a value at most 8, so their product is
// a float without rounding: what is multiplied is, to the last bit, what the file's values would be as a whole tensor.
#pragma once

#include <cstdint>

#include "panel_product.h"
#include "vector.h"
#include "widen_panel.h"

namespace headrace {

// Q8_0. Values lie as bfloat16 does in a panel: [out / 16][in / 2][out % 16][in % 2].
struct alignas(64) EightBitStep {
  int8_t values[kPanelDepth * kPanelWidth];
  uint16_t scales[kPanelWidth];

  void set(int64_t in, int64_t out, int8_t value) { values[panel_offset<BFloat16>(in, out)] = value; }
};

// Q4_0 and Q4_1. Of 32 values that would lie in a row, byte i holds number i and number 16 + i.
struct alignas(64) FourBitStep {
  uint8_t values[kPanelDepth * kPanelWidth / 2];
  uint16_t scales[kPanelWidth];
  uint16_t minima[kPanelWidth];

  void set(int64_t in, int64_t out, uint8_t value) {
    const int64_t place = panel_offset<BFloat16>(in, out);
    values[place / 32 * 16 + place % 16] |= static_cast<uint8_t>(value << (place % 32 / 16 * 4));
  }
};

// 16 numbers of the half-precision format; not its infinities.
inline Floats load_halves(const uint16_t* source) {
  Halves halves;
  std::memcpy(&halves, source, sizeof(halves));
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(halves)));
#else
  const Words words = __builtin_convertvector(halves, Words);
  // The exponent's bias is 15 in place of 127.
  const Floats magnitude = reinterpret_cast<Floats>((words & 0x7fff) << 13) * 0x1p112f;
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(magnitude) | (words & 0x8000) << 16);
#endif
}

// What applies to outputs [0, 8) of 16 and to outputs [8, 16), for two inputs each.
struct PairFactors {
  Floats first;
  Floats second;

  explicit PairFactors(Floats factors)
      : first(__builtin_shuffle(factors, Ints{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7})),
        second(__builtin_shuffle(factors, Ints{8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15})) {}
};

// Writes two inputs of 16 outputs of a step: [out % 8][in % 2] of the first 8 outputs, and of the others.
inline void put_pair(BFloat16* step, int64_t half, int64_t pair, Floats first, Floats second) {
  BFloat16* target = step + half * 512 + pair * 32;
  store(target, first);
  store(target + kLanes, second);
}

inline void put_pair(float* step, int64_t half, int64_t pair, Floats first, Floats second) {
  float* target = step + pair * 2 * kPanelWidth + half * kLanes;
  store(target, __builtin_shuffle(first, second, Ints{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}));
  store(target + kPanelWidth,
        __builtin_shuffle(first, second, Ints{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31}));
}

inline Ints load_byte_lanes(const void* source) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(source))));
#else
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  Bytes bytes;
  std::memcpy(&bytes, source, sizeof(bytes));
  return __builtin_convertvector(bytes, Ints);
#endif
}

template <typename T>
inline void widen_step(const EightBitStep* step, T* target) {
  for (int64_t half = 0; half < 2; ++half) {
    const PairFactors scales(load_halves(step->scales + half * kLanes));
    for (int64_t pair = 0; pair < kPanelDepth / 2; ++pair) {
      const int8_t* values = step->values + half * 512 + pair * 32;
      put_pair(target, half, pair, load_bytes(values) * scales.first, load_bytes(values + kLanes) * scales.second);
    }
  }
}

template <typename T>
inline void widen_step(const FourBitStep* step, T* target) {
  for (int64_t half = 0; half < 2; ++half) {
    const PairFactors scales(load_halves(step->scales + half * kLanes));
    const PairFactors minima(load_halves(step->minima + half * kLanes));
    for (int64_t pair = 0; pair < kPanelDepth / 2; ++pair) {
      const Ints both = load_byte_lanes(step->values + half * 256 + pair * 16);
      put_pair(target, half, pair, __builtin_convertvector(both & 15, Floats) * scales.first + minima.first,
               __builtin_convertvector(both >> 4, Floats) * scales.second + minima.second);
    }
  }
}

}  // namespace headrace
