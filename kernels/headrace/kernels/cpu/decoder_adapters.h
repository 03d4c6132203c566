// What the adapters of a step add to the linear layers of a decoder.
#pragma once

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "decoder.h"
#include "low_rank_tasks.h"

namespace headrace {

// What is added to the rows of a linear layer, as LinearTensors has it.
struct LinearAddend {
  const float* added = nullptr;
  const int64_t* rows = nullptr;
};

// The products of one linear layer at a time, for all tokens of the step or for those that are wanted of it.
// NOTE: only tokens that have an adapter have a row here, so the others pay for none.
template <typename T>
class AdapterProducts {
 public:
  AdapterProducts(const DecoderAdapters<T>& adapters, const DecoderShape& shape, const int64_t* output_tokens)
      : adapters_(adapters),
        sizes_(sizes_of(shape)),
        adds_(adapters.weights.size() / std::max<int64_t>(adapters.count, 1)) {
    if (adapters.count == 0) return;
    std::vector<int64_t> output_adapters(shape.output_count);
    for (int64_t output = 0; output < shape.output_count; ++output)
      output_adapters[output] = adapters.token_adapters[output_tokens[output]];
    all_ = TokenSet(adapters.token_adapters, shape.token_count, adapters.count);
    outputs_ = TokenSet(output_adapters.data(), shape.output_count, adapters.count);
    for (std::size_t index = 0; index < adapters.weights.size(); ++index) {
      const LowRankWeights<T>& weights = adapters.weights[index];
      const std::size_t linear = index / adapters.count;
      const auto part_count = static_cast<int64_t>(sizes_[linear % kLinearKindCount].part_sizes.size());
      if (LowRankSizes::offset_of(weights.part_ranks, part_count) > 0) adds_[linear] = true;
      output_.widest_rank = std::max(output_.widest_rank, weights.rank);
    }
    int64_t out_count = 0;
    for (const LowRankSizes& sizes : sizes_) out_count = std::max(out_count, sizes.out_count());
    const auto row_count =
        static_cast<int64_t>(std::max(all_.groups.size(), outputs_.groups.size())) * TokenGroup::kSize;
    narrow_.resize(row_count * output_.widest_rank);
    wide_.resize(row_count * out_count);
    output_.narrow = narrow_.data();
    output_.wide = wide_.data();
  }

  AdapterProducts(const AdapterProducts&) = delete;
  AdapterProducts& operator=(const AdapterProducts&) = delete;

  // Whether any adapter of the step has a product beside a linear layer.
  bool adds(int64_t layer, LinearKind kind) const {
    return adapters_.count > 0 && adds_[layer * kLinearKindCount + kind];
  }

  LowRankTasks<T> tasks(int64_t layer, LinearKind kind, bool is_of_outputs, const T* input) const {
    const LowRankWeights<T>* weights = adapters_.weights.data() + (layer * kLinearKindCount + kind) * adapters_.count;
    const TokenSet& tokens = is_of_outputs ? outputs_ : all_;
    return {input, sizes_[kind].in_count, tokens.groups, weights, sizes_[kind], output_};
  }

  // What the tasks of a layer have made, once all of them are done.
  LinearAddend addend(bool is_of_outputs) const {
    return {output_.wide, (is_of_outputs ? outputs_ : all_).rows.data()};
  }

 private:
  struct TokenSet {
    TokenSet() = default;
    TokenSet(const int64_t* token_adapters, int64_t token_count, int64_t adapter_count)
        : groups(group_tokens(token_adapters, token_count, adapter_count)), rows(token_count, -1) {
      for (std::size_t group = 0; group < groups.size(); ++group)
        for (int64_t token = 0; token < groups[group].count; ++token)
          rows[groups[group].tokens[token]] = static_cast<int64_t>(group) * TokenGroup::kSize + token;
    }

    std::vector<TokenGroup> groups;
    // [token] its row of what is added, or -1.
    std::vector<int64_t> rows;
  };

  static std::vector<LowRankSizes> sizes_of(const DecoderShape& shape) {
    const int64_t query = shape.attention.head_count * shape.attention.head_size;
    const int64_t key = shape.attention.kv_head_count * shape.attention.head_size;
    return {{shape.hidden_size, {query, key, key}},
            {query, {shape.hidden_size}},
            {shape.hidden_size, {shape.inner_size, shape.inner_size}},
            {shape.inner_size, {shape.hidden_size}}};
  }

  const DecoderAdapters<T>& adapters_;
  const std::vector<LowRankSizes> sizes_;
  // [layer][linear]
  std::vector<char> adds_;
  TokenSet all_;
  TokenSet outputs_;
  std::vector<float> narrow_;
  std::vector<float> wide_;
  LowRankOutput output_ = {nullptr, 0, nullptr, true};
};

}  // namespace headrace
