// Weights of bfloat16 in twelve bits, without loss.
//
// The upper byte of a bfloat16 is its sign and all of its exponent but the last bit. The weights of a step are of
// similar size, so it hardly ever has more than 16 different upper bytes, and four bits say which one it is; the lower
// byte stays as it is. A step is widened just before it is multiplied by, and three quarters come from memory.
//
// NOTE: that the exponents of trained weights carry little information is what DFloat11 (Zhang et al., 2025) saves
// memory by. Its codes have as many bits as they need, eleven in all; codes of one length are read by one look-up in a
// register, which is faster than memory delivers them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>

#include "panel_product.h"
#include "vector.h"

namespace headrace {

// What differs from the sixteen most frequent upper bytes, and where in the step.
struct Outlier {
  uint16_t place;
  uint16_t bits;
};

constexpr int64_t kStepWeights = kPanelDepth * kPanelWidth;
constexpr int64_t kOutlierCount = 12;
constexpr uint16_t kNoPlace = 0xffff;

// Of 64 weights in a row, two vectors that lie one after the other, the bytes lie so that the lower and the upper half
// of each 16 of them are those of the first and of the second vector: so an instruction interleaves them.
struct alignas(64) TwelveBitStep {
  uint8_t lower[kStepWeights];
  // Byte i of 64 holds the code of byte i of `lower` in its lower half, and of byte 64 + i in its upper one.
  uint8_t codes[kStepWeights / 2];
  uint8_t upper[16];
  // The unused ones, at the end, have no place.
  Outlier outliers[kOutlierCount];

  static int64_t byte_of(int64_t place) {
    const int64_t in_vector = place % 32;
    return place / 64 * 64 + in_vector / 8 * 16 + place % 64 / 32 * 8 + in_vector % 8;
  }

  void set_code(int64_t byte, uint8_t code) {
    codes[byte / 128 * 64 + byte % 64] |= static_cast<uint8_t>(code << (byte % 128 / 64 * 4));
  }

  uint8_t code(int64_t byte) const { return codes[byte / 128 * 64 + byte % 64] >> (byte % 128 / 64 * 4) & 15; }
};
static_assert(sizeof(TwelveBitStep) == 1600);

// Returns the upper bytes of a step, the most frequent first.
inline std::array<uint8_t, 256> rank_upper_bytes(const BFloat16* weights) {
  std::array<int32_t, 256> counts = {};
  for (int64_t place = 0; place < kStepWeights; ++place) ++counts[weights[place].bits >> 8];
  std::array<uint8_t, 256> ranked;
  std::iota(ranked.begin(), ranked.end(), uint8_t{0});
  std::partial_sort(ranked.begin(), ranked.begin() + 16, ranked.end(), [&](uint8_t left, uint8_t right) {
    return counts[left] != counts[right] ? counts[left] > counts[right] : left < right;
  });
  return ranked;
}

// Packs a step of a panel of bfloat16 into one that is zeroed. Returns whether that can be done: whether no more
// weights than there are places for outliers differ from the sixteen.
inline bool narrow_step(const BFloat16* weights, TwelveBitStep& step) {
  const std::array<uint8_t, 256> ranked = rank_upper_bytes(weights);
  std::array<int8_t, 256> code_of;
  code_of.fill(-1);
  for (int8_t code = 0; code < 16; ++code) {
    step.upper[code] = ranked[code];
    code_of[ranked[code]] = code;
  }
  std::fill_n(step.outliers, kOutlierCount, Outlier{kNoPlace, 0});
  int64_t outlier_count = 0;
  for (int64_t place = 0; place < kStepWeights; ++place) {
    const uint16_t bits = weights[place].bits;
    const int64_t byte = TwelveBitStep::byte_of(place);
    step.lower[byte] = static_cast<uint8_t>(bits);
    const int8_t code = code_of[bits >> 8];
    if (code >= 0) {
      step.set_code(byte, static_cast<uint8_t>(code));
    } else if (outlier_count < kOutlierCount) {
      step.outliers[outlier_count++] = {static_cast<uint16_t>(place), bits};
    } else {
      return false;
    }
  }
  return true;
}

inline void widen_step(const TwelveBitStep* step, BFloat16* target) {
#if defined(__AVX512BW__)
  const __m512i upper = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(step->upper)));
  const __m512i lowest_bits = _mm512_set1_epi8(15);
  for (int64_t byte = 0; byte < kStepWeights; byte += 128) {
    const __m512i codes = _mm512_load_si512(step->codes + byte / 2);
    for (int64_t half = 0; half < 2; ++half) {
      const __m512i places = _mm512_and_si512(half == 0 ? codes : _mm512_srli_epi16(codes, 4), lowest_bits);
      const __m512i high = _mm512_shuffle_epi8(upper, places);
      const __m512i low = _mm512_load_si512(step->lower + byte + half * 64);
      _mm512_store_si512(target + byte + half * 64, _mm512_unpacklo_epi8(low, high));
      _mm512_store_si512(target + byte + half * 64 + 32, _mm512_unpackhi_epi8(low, high));
    }
  }
#else
  for (int64_t place = 0; place < kStepWeights; ++place) {
    const int64_t byte = TwelveBitStep::byte_of(place);
    target[place].bits = static_cast<uint16_t>(step->upper[step->code(byte)] << 8 | step->lower[byte]);
  }
#endif
  for (int64_t index = 0; index < kOutlierCount && step->outliers[index].place != kNoPlace; ++index)
    target[step->outliers[index].place].bits = step->outliers[index].bits;
}

}  // namespace headrace
