// What the operators check before they read or write memory by what they were given.
#pragma once

#include <ATen/core/Tensor.h>

#include "bfloat16.h"
#include "block_steps.h"
#include "linear.h"
#include "twelve_bit_steps.h"

namespace headrace::operators {

using at::Tensor;

// Calls body.template operator()<T>() with the C++ type of the elements.
template <typename Body>
inline void with_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body.template operator()<float>();
    case at::kBFloat16:
      return body.template operator()<BFloat16>();
    default:
      TORCH_CHECK(false, "the tensors are ", tensor.scalar_type(), "; these operators take float32 and bfloat16");
  }
}

// Calls body.template operator()<W>() with the type of a packed weight for inputs of type T: that of the input, 8-bit
// integers with scales, or one of the steps in block_steps.h and twelve_bit_steps.h, which are kept as bytes.
template <typename T, typename Body>
inline void with_weight_type(const Tensor& panels, const LinearShape& shape, const Body& body) {
  if (panels.scalar_type() == at::kChar) return body.template operator()<typename IntegersFor<T>::Type>();
  if (panels.scalar_type() != at::kByte) return body.template operator()<T>();
  if (panels.numel() == packed_size<EightBitStep>(shape) * static_cast<int64_t>(sizeof(EightBitStep)))
    return body.template operator()<EightBitStep>();
  if constexpr (std::is_same_v<T, BFloat16>)
    if (panels.numel() == packed_size<TwelveBitStep>(shape) * static_cast<int64_t>(sizeof(TwelveBitStep)))
      return body.template operator()<TwelveBitStep>();
  return body.template operator()<FourBitStep>();
}

template <typename W>
constexpr at::ScalarType kStoredType = at::kByte;
template <>
inline constexpr at::ScalarType kStoredType<float> = at::kFloat;
template <>
inline constexpr at::ScalarType kStoredType<BFloat16> = at::kBFloat16;
template <>
inline constexpr at::ScalarType kStoredType<int8_t> = at::kChar;
template <>
inline constexpr at::ScalarType kStoredType<TileByte> = at::kChar;

template <typename T>
inline const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
inline T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline void check_like(const Tensor& tensor, const Tensor& model, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == model.scalar_type(), name, " is ", tensor.scalar_type(), " beside ",
              model.scalar_type());
}

inline void check_column(const Tensor& tensor, at::ScalarType type, int64_t count, const char* name) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type && tensor.numel() == count, name, " must be ",
              count, " contiguous ", type);
}

// Checks that a packed weight of type W has the size that its layer means.
template <typename W>
inline void check_panels(const Tensor& panels, const LinearShape& shape, const char* name = "the weight") {
  constexpr bool is_bytes = kStoredType<W> == at::kByte;
  check_column(panels, kStoredType<W>, packed_size<W>(shape) * (is_bytes ? sizeof(W) : 1), name);
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// Checks that every element is in [0, end).
template <typename T>
inline void check_range(const T* values, int64_t count, int64_t end, const char* name) {
  for (int64_t index = 0; index < count; ++index)
    TORCH_CHECK(values[index] >= 0 && values[index] < end, name, " has ", values[index], " outside of [0, ", end, ")");
}

inline void check_caches(const Tensor& key_cache, const Tensor& value_cache) {
  check_contiguous(key_cache, "key_cache");
  check_contiguous(value_cache, "value_cache");
  check_like(value_cache, key_cache, "value_cache");
  TORCH_CHECK(key_cache.dim() == 4 && value_cache.sizes() == key_cache.sizes(),
              "the caches must be [block, kv_head, block_size, head_dim]");
}

// Checks what the rows of a step read, so that no wrong table reads past the cache.
inline void check_rows(int64_t token_count, const Tensor& key_cache, const Tensor& block_tables,
                       const int32_t* query_starts, const int32_t* context_lengths) {
  const int64_t block_size = key_cache.size(2);
  TORCH_CHECK(query_starts[0] == 0 && query_starts[block_tables.size(0)] == token_count,
              "query_starts must run from 0 to the number of tokens");
  for (int64_t row = 0; row < block_tables.size(0); ++row) {
    const int64_t query_count = query_starts[row + 1] - query_starts[row];
    const int64_t block_count = (context_lengths[row] + block_size - 1) / block_size;
    TORCH_CHECK(query_count >= 1 && query_count <= context_lengths[row], "row ", row, " brings ", query_count,
                " tokens of ", context_lengths[row]);
    TORCH_CHECK(block_count <= block_tables.size(1), "row ", row, " needs ", block_count, " blocks of ",
                block_tables.size(1));
    check_range(data<int32_t>(block_tables) + row * block_tables.stride(0), block_count, key_cache.size(0),
                "block_tables");
  }
}

// Checks the tables that say which rows bring which tokens, and where their keys and values lie.
inline void check_tables(int64_t token_count, const Tensor& key_cache, const Tensor& block_tables,
                         const Tensor& query_starts, const Tensor& context_lengths) {
  TORCH_CHECK(block_tables.dim() == 2 && block_tables.scalar_type() == at::kInt && block_tables.stride(1) == 1,
              "block_tables must be int32 [row, block]");
  check_column(query_starts, at::kInt, block_tables.size(0) + 1, "query_starts");
  check_column(context_lengths, at::kInt, block_tables.size(0), "context_lengths");
  check_rows(token_count, key_cache, block_tables, data<int32_t>(query_starts), data<int32_t>(context_lengths));
}

inline void check_rotation(const Tensor& cos_sin, int64_t head_size) {
  TORCH_CHECK(cos_sin.is_contiguous() && cos_sin.scalar_type() == at::kFloat && cos_sin.dim() == 2 &&
                  cos_sin.size(1) % 2 == 0 && cos_sin.size(1) <= head_size,
              "cos_sin must be contiguous float32 [position, rotary_dim]");
}

}  // namespace headrace::operators
