// Causal attention over paged key-value blocks.
#pragma once

#include <cstdint>

namespace headrace {

struct AttentionShape {
  int64_t row_count;
  int64_t head_count;
  int64_t kv_head_count;
  int64_t head_size;
  int64_t block_size;
  int64_t block_table_stride;
  int64_t query_stride;  // from one token to the next, in elements
  float scale;
};

template <typename T>
struct AttentionTensors {
  const T* query;
  const T* key_cache;
  const T* value_cache;
  const int32_t* block_tables;
  const int32_t* query_starts;
  const int32_t* context_lengths;
  T* output;
};

// Query and output are [token, head, head_size], the caches [block, kv_head, block_size, head_size], all contiguous but
// for the query's tokens.
template <typename T>
void paged_attention(const AttentionTensors<T>& tensors, const AttentionShape& shape);

}  // namespace headrace
