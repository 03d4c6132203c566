// The layers of a decoder, one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "attention.h"
#include "low_rank.h"

namespace headrace {

// The linear layers of a decoder layer, in the order of every list of them.
enum LinearKind { kQueryKeyValueKind, kAttentionOutputKind, kGatedKind, kDownKind, kLinearKindCount };

// One linear layer, its weight packed.
template <typename T, typename W>
struct PackedWeight {
  const W* panels;
  const float* scales;
  const T* bias;
};

template <typename T, typename W>
struct DecoderLayer {
  const T* mlp_norm;
  // The norm that follows the layer: the next layer's, or the last of all.
  const T* next_norm;
  PackedWeight<T, W> query_key_value;
  PackedWeight<T, W> attention_output;
  PackedWeight<T, W> gated;
  PackedWeight<T, W> down;
  T* key_cache;
  T* value_cache;
};

// The adapters of a step.
template <typename T>
struct DecoderAdapters {
  // None where no token has one.
  int64_t count;
  // [token], -1 for none.
  const int64_t* token_adapters;
  // [layer][linear][adapter]
  std::vector<LowRankWeights<T>> weights;
};

struct DecoderShape {
  int64_t token_count;
  int64_t output_count;
  int64_t hidden_size;
  int64_t inner_size;
  int64_t rotary_size;
  float epsilon;
  // Its query_stride is set by the decoder.
  AttentionShape attention;
};

template <typename T>
struct DecoderTensors {
  // [token, hidden]; overwritten.
  T* residual;
  const T* first_norm;
  const float* cos_sin;
  const int64_t* positions;
  const int64_t* slot_ids;
  const int32_t* block_tables;
  const int32_t* query_starts;
  const int32_t* context_lengths;
  // The tokens whose hidden states are wanted.
  const int64_t* output_tokens;
  // [output token, hidden], normalised.
  T* output;
};

// Whether the widths allow it: all that a linear layer reads must be whole panel depths.
bool can_decode(const DecoderShape& shape);

// Computes all layers in one parallel region.
template <typename T, typename W>
void decode(const DecoderTensors<T>& tensors, const std::vector<DecoderLayer<T, W>>& layers,
            const DecoderAdapters<T>& adapters, const DecoderShape& shape);

}  // namespace headrace
