// Sixteen floats at a time, in the compiler's own vector types: one source for every instruction set.
//
// A vector of 64 bytes is one register with AVX-512 and several without it; the compiler splits it. Only what the
// vector types cannot say (a rounding to bfloat16 in one instruction) is written with intrinsics, under the macro
// that says the processor has it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "bfloat16.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace headrace {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline float widen(float value) { return value; }

inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

template <typename T>
T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  // NOTE: adding the rounding to a NaN could carry it into an infinity.
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline Floats broadcast(float value) { return Floats{} + value; }

inline Floats load(const float* source) {
  Floats values;
  std::memcpy(&values, source, sizeof(values));
  return values;
}

inline Floats load(const BFloat16* source) {
  Halves halves;
  std::memcpy(&halves, source, sizeof(halves));
#if defined(__AVX512F__)
  const Words words = reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
#else
  const Words words = __builtin_convertvector(halves, Words);
#endif
  return reinterpret_cast<Floats>(words << 16);
}

inline void store(float* target, Floats values) { std::memcpy(target, &values, sizeof(values)); }

inline Halves to_bfloat16(Floats values) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(values)));
#else
  const Words bits = reinterpret_cast<Words>(values);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words is_nan = reinterpret_cast<Words>(values != values);
  return __builtin_convertvector((rounded & ~is_nan) | (((bits >> 16) | 0x40) & is_nan), Halves);
#endif
}

inline void store(BFloat16* target, Floats values) {
  const Halves halves = to_bfloat16(values);
  std::memcpy(target, &halves, sizeof(halves));
}

// The first `count` < 16 values; the other lanes are zero.
template <typename T>
inline Floats load_first(const T* source, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, source, count * sizeof(T));
  return load(padded);
}

template <typename T>
inline void store_first(T* target, Floats values, int64_t count) {
  T padded[kLanes];
  store(padded, values);
  std::memcpy(target, padded, count * sizeof(T));
}

// The first `count`, or all where there are more; the other lanes are zero. `count` may be negative.
template <typename T>
inline Floats load_at_most(const T* source, int64_t count) {
  if (count >= kLanes) return load(source);
  return count > 0 ? load_first(source, count) : Floats{};
}

template <typename T>
inline void store_at_most(T* target, Floats values, int64_t count) {
  if (count >= kLanes) {
    store(target, values);
  } else if (count > 0) {
    store_first(target, values, count);
  }
}

inline Words load_words(const void* source) {
  Words words;
  std::memcpy(&words, source, sizeof(words));
  return words;
}

inline void store_words(void* target, Words words) { std::memcpy(target, &words, sizeof(words)); }

// Writes 16 pairs of two rows' elements.
inline void interleave(const BFloat16* first, const BFloat16* second, BFloat16* target) {
  const Words evens = reinterpret_cast<Words>(load(first)) >> 16;
  store_words(target, evens | reinterpret_cast<Words>(load(second)));
}

// Reads 16 words, pairs of bfloat16, from `element` on in each of 16 rows, and writes them column after column.
inline void transpose_words(const BFloat16* const* rows, int64_t element, BFloat16* target) {
#if defined(__AVX512F__)
  __m512i lines[16], mixed[16];
  for (int row = 0; row < 16; ++row) lines[row] = _mm512_loadu_si512(rows[row] + element);
  for (int row = 0; row < 16; row += 2) {
    mixed[row] = _mm512_unpacklo_epi32(lines[row], lines[row + 1]);
    mixed[row + 1] = _mm512_unpackhi_epi32(lines[row], lines[row + 1]);
  }
  for (int row = 0; row < 16; row += 4)
    for (int half = 0; half < 2; ++half) {
      lines[row + 2 * half] = _mm512_unpacklo_epi64(mixed[row + half], mixed[row + half + 2]);
      lines[row + 2 * half + 1] = _mm512_unpackhi_epi64(mixed[row + half], mixed[row + half + 2]);
    }
  // Now lines[4 * i + j] holds columns j, j + 4, j + 8 and j + 12 of rows [4 * i, 4 * i + 4).
  for (int column = 0; column < 4; ++column) {
    mixed[column] = _mm512_shuffle_i32x4(lines[column], lines[4 + column], 0x44);
    mixed[4 + column] = _mm512_shuffle_i32x4(lines[column], lines[4 + column], 0xee);
    mixed[8 + column] = _mm512_shuffle_i32x4(lines[8 + column], lines[12 + column], 0x44);
    mixed[12 + column] = _mm512_shuffle_i32x4(lines[8 + column], lines[12 + column], 0xee);
  }
  for (int column = 0; column < 4; ++column) {
    _mm512_storeu_si512(target + column * 32, _mm512_shuffle_i32x4(mixed[column], mixed[8 + column], 0x88));
    _mm512_storeu_si512(target + (4 + column) * 32, _mm512_shuffle_i32x4(mixed[column], mixed[8 + column], 0xdd));
    _mm512_storeu_si512(target + (8 + column) * 32, _mm512_shuffle_i32x4(mixed[4 + column], mixed[12 + column], 0x88));
    _mm512_storeu_si512(target + (12 + column) * 32, _mm512_shuffle_i32x4(mixed[4 + column], mixed[12 + column], 0xdd));
  }
#else
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column)
      std::memcpy(target + column * 32 + row * 2, rows[row] + element + column * 2, 2 * sizeof(BFloat16));
#endif
}

// sums[lane] += factors[0] * pairs[lane][0] + factors[1] * pairs[lane][1], each lane a pair of bfloat16.
inline Floats add_pair_products(Floats sums, const BFloat16* factors, Words pairs) {
#if defined(__AVX512BF16__)
  int32_t both;
  std::memcpy(&both, factors, sizeof(both));
  return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                                                   reinterpret_cast<__m512bh>(pairs)));
#else
  sums += broadcast(widen(factors[0])) * reinterpret_cast<Floats>(pairs << 16);
  sums += broadcast(widen(factors[1])) * reinterpret_cast<Floats>(pairs & 0xffff0000u);
  return sums;
#endif
}

// The larger of each lane's two; `right` where one is no number.
inline Floats maximum(Floats left, Floats right) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_max_ps(reinterpret_cast<__m512>(left), reinterpret_cast<__m512>(right)));
#else
  return left > right ? left : right;
#endif
}

inline Floats minimum(Floats left, Floats right) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_min_ps(reinterpret_cast<__m512>(left), reinterpret_cast<__m512>(right)));
#else
  return left < right ? left : right;
#endif
}

// Lanes are added in a fixed tree, so a sum does not depend on how the compiler likes to add.
inline float sum(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(values));
#else
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) values[lane] += values[lane + width];
  return values[0];
#endif
}

inline float largest(Floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(values));
#else
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane)
      values[lane] = values[lane] > values[lane + width] ? values[lane] : values[lane + width];
  return values[0];
#endif
}

// values * 2**exponents for whole exponents of at most a few hundred and values below 2.
// NOTE: what is below half of the smallest float is not computed: processors take a hundred times as long over a result
// that underflows, and a barred token's weight is one.
inline Floats scale_by_power(Floats values, Floats exponents) {
  constexpr float kVanishing = -151.0f;
#if defined(__AVX512F__)
  // Not "greater": what is no number stays none.
  const __mmask16 is_kept =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(exponents), _mm512_set1_ps(kVanishing), _CMP_NLE_US);
  return reinterpret_cast<Floats>(
      _mm512_maskz_scalef_ps(is_kept, reinterpret_cast<__m512>(values), reinterpret_cast<__m512>(exponents)));
#else
  const Ints vanishes = exponents <= kVanishing;
  // In three factors, each a float: the whole power may be too small or too large to be one.
  const Ints whole = vanishes ? Ints{} : __builtin_convertvector(exponents, Ints);
  const Ints third = whole / 3;
  const Floats factor = reinterpret_cast<Floats>((third + 127) << 23);
  const Floats scaled = values * factor * factor * reinterpret_cast<Floats>((whole - third * 2 + 127) << 23);
  return vanishes ? Floats{} : scaled;
#endif
}

// e**x with a relative error below 2**-22, exactly 1 for 0; 0 below -104, infinity above 89, NaN of NaN.
inline Floats exponential(Floats x) {
  const Floats clamped = minimum(broadcast(200.0f), maximum(broadcast(-200.0f), x));
  // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts, the first exact in n's products.
  const Floats shifter = broadcast(12582912.0f);
  const Floats whole = (clamped * 1.44269504f + shifter) - shifter;
  const Floats rest = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats power = broadcast(1.9875691500e-4f);
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * (rest * rest) + (rest + 1.0f);
  return scale_by_power(power, whole);
}

inline float exponential(float x) { return exponential(broadcast(x))[0]; }

// 2**x with a relative error below 2**-18, exactly 1 for 0; for what is rounded to bfloat16 afterwards.
// NOTE: with the conversion of base, four terms and no second part of ln 2 take half as long as `exponential`.
inline Floats power_of_two(Floats x) {
  const Floats clamped = minimum(broadcast(200.0f), maximum(broadcast(-200.0f), x));
  const Floats shifter = broadcast(12582912.0f);
  const Floats whole = (clamped + shifter) - shifter;
  const Floats rest = clamped - whole;
  Floats power = broadcast(9.58285e-3f);
  power = power * rest + 5.590642e-2f;
  power = power * rest + 2.4024099e-1f;
  power = power * rest + 6.9312419e-1f;
  return scale_by_power(power * rest + 1.0f, whole);
}

// How exactly numbers are computed that are stored as T: the base of the powers, and what depends on them.
template <typename T>
struct Precision;

template <>
struct Precision<float> {
  // `power(x * kUnit)` is e**x.
  static constexpr float kUnit = 1.0f;
  static Floats power(Floats x) { return exponential(x); }
  static Floats divide(Floats dividend, Floats divisor) { return dividend / divisor; }
};

template <>
struct Precision<BFloat16> {
  static constexpr float kUnit = 1.44269504f;
  static Floats power(Floats x) { return power_of_two(x); }
  static Floats divide(Floats dividend, Floats divisor) {
#if defined(__AVX512F__)
    // Right to 14 bits; a division takes as long as six of these.
    return dividend * reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(divisor)));
#else
    return dividend / divisor;
#endif
  }
};

// x / (1 + e**-x), as exactly as T holds it.
template <typename T>
inline Floats silu(Floats x) {
  return Precision<T>::divide(x, 1.0f + Precision<T>::power(x * -Precision<T>::kUnit));
}

}  // namespace headrace
