// Attention of some query rows to one span of keys: the scores, their weights and the weighted values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "buffer.h"
#include "panel_product.h"
#include "vector.h"

namespace headrace {

// Keys that are looked at together.
// NOTE: contexts are cut at multiples of this whatever the queries are, and the parts are merged in order. So a
// token's result is the same, to the last bit, whether it was decoded or computed in a chunk of any size.
constexpr int64_t kKeySpan = 256;

// What attention to a part of the keys has given: values weighted by exp(score - peak), and the sum of those weights.
struct PartialAttention {
  float peak = -std::numeric_limits<float>::infinity();
  float weight_sum = 0.0f;
};

// Adds a part and its values to a total and its values; `size` is a multiple of kLanes.
inline void merge(const PartialAttention& part, const float* values, int64_t size, PartialAttention& total,
                  float* total_values) {
  if (total.weight_sum == 0.0f) {
    total = part;
    std::copy_n(values, size, total_values);
    return;
  }
  const float peak = std::max(total.peak, part.peak);
  const float total_factor = exponential(total.peak - peak);
  const float part_factor = exponential(part.peak - peak);
  for (int64_t offset = 0; offset < size; offset += kLanes)
    store(total_values + offset, load(total_values + offset) * total_factor + load(values + offset) * part_factor);
  total = {peak, total.weight_sum * total_factor + part.weight_sum * part_factor};
}

// Where the keys and values of up to kKeySpan tokens lie.
template <typename T>
struct KeySpan {
  int64_t count = 0;
  const T* keys[kKeySpan];
  const T* values[kKeySpan];

  // Asks memory for those from `begin` to `end`, as far as there are any.
  // NOTE: blocks are too short for the processor to guess what is read next, and a decoding step reads every key once.
  void fetch(int64_t begin, int64_t end, int64_t size) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t key = begin; key < std::min(end, count); ++key)
      for (int64_t element = 0; element < size; element += kLine) {
        __builtin_prefetch(keys[key] + element, 0, 2);
        __builtin_prefetch(values[key] + element, 0, 2);
      }
  }
};

// Copies up to 16 keys to where they are columns of half a panel.
inline void pack_keys(const float* const* keys, int64_t count, int64_t size, float* half_panel) {
  for (int64_t key = 0; key < count; ++key)
    for (int64_t element = 0; element < size; ++element) half_panel[element * kPanelWidth + key] = keys[key][element];
}

inline void pack_keys(const BFloat16* const* keys, int64_t count, int64_t size, BFloat16* half_panel) {
  int64_t element = 0;
  for (; element + 32 <= size && count == kLanes; element += 32)
    transpose_words(keys, element, half_panel + panel_offset<BFloat16>(element, 0));
  for (; element < size; ++element)
    for (int64_t key = 0; key < count; ++key) half_panel[panel_offset<BFloat16>(element, key)] = keys[key][element];
}

// Copies two values to where they are two rows of panels, a panel for every 32 of their elements.
inline void pack_value_pair(const float* first, const float* second, int64_t size, int64_t pair, float* panels) {
  for (int64_t element = 0; element < size; ++element) {
    float* target = panels + element / kPanelWidth * kPanelWidth * kKeySpan + element % kPanelWidth;
    target[pair * 2 * kPanelWidth] = first[element];
    target[(pair * 2 + 1) * kPanelWidth] = second[element];
  }
}

inline void pack_value_pair(const BFloat16* first, const BFloat16* second, int64_t size, int64_t pair,
                            BFloat16* panels) {
  for (int64_t element = 0; element < size; element += kLanes) {
    BFloat16* target = panels + element / kPanelWidth * kPanelWidth * kKeySpan +
                       panel_offset<BFloat16>(pair * 2, element % kPanelWidth);
    if (size - element >= kLanes) {
      interleave(first + element, second + element, target);
      continue;
    }
    for (int64_t lane = 0; lane < size - element; ++lane) {
      target[lane * 2] = first[element + lane];
      target[lane * 2 + 1] = second[element + lane];
    }
  }
}

// Keys and values of up to kKeySpan tokens as panels, and room for what up to kRowBlock query rows make of them.
template <typename T>
class AttentionBlock {
 public:
  explicit AttentionBlock(int64_t head_size)
      : head_size_(head_size),
        padded_size_(round_up(head_size, kPanelWidth)),
        key_panels_(kKeySpan * padded_size_),
        value_panels_(kKeySpan * padded_size_),
        zeros_(padded_size_),
        scores_(kKeySpan * kRowBlock),
        weights_(kKeySpan * kRowBlock),
        values_(padded_size_ * kRowBlock) {}

  int64_t head_size() const { return head_size_; }
  int64_t padded_size() const { return padded_size_; }

  // Takes the keys and values of a span, and has those of another fetched meanwhile.
  void load_span(const KeySpan<T>& span, const KeySpan<T>& ahead) {
    for (int64_t key = 0; key < span.count; key += kLanes) {
      pack_keys(
          span.keys + key, std::min(kLanes, span.count - key), head_size_,
          key_panels_.data() + key / kPanelWidth * kPanelWidth * padded_size_ + panel_offset<T>(0, key % kPanelWidth));
      ahead.fetch(key, key + kLanes, head_size_);
    }
    ahead.fetch(round_up(span.count, kLanes), ahead.count, head_size_);
    // NOTE: a weight of zero does not silence what is no number, so the keys up to the next panel are real zeros.
    for (int64_t key = 0; key < round_up(span.count, kPanelDepth); key += 2) {
      const T* first = key < span.count ? span.values[key] : zeros_.data();
      const T* second = key + 1 < span.count ? span.values[key + 1] : zeros_.data();
      pack_value_pair(first, second, head_size_, key / 2, value_panels_.data());
    }
  }

  // Attends rows [row_count, padded_size] to the first visible_counts[row] keys of the span. Returns the weighted
  // values, [row][padded_size]; partials[row] is untouched where no key is visible.
  const float* attend(PanelProduct<T>& product, const T* rows, int64_t row_count, const int64_t* visible_counts,
                      float scale, PartialAttention* partials) {
    const int64_t key_count = round_up(*std::max_element(visible_counts, visible_counts + row_count), kPanelWidth);
    for (int64_t key = 0; key < key_count; key += kPanelWidth)
      product.multiply(rows, padded_size_, row_count, key_panels_.data() + key * padded_size_, padded_size_, nullptr,
                       scores_.data() + key * kRowBlock, [] {});
    for (int64_t row = 0; row < row_count; ++row) weigh(row, visible_counts[row], key_count, scale, partials[row]);
    for (int64_t element = 0; element < padded_size_; element += kPanelWidth) {
      product.multiply(weights_.data(), kKeySpan, row_count, value_panels_.data() + element * kKeySpan, key_count,
                       nullptr, panel_, [] {});
      for (int64_t row = 0; row < row_count; ++row)
        std::copy_n(panel_ + row * kPanelWidth, kPanelWidth, values_.data() + row * padded_size_ + element);
    }
    return values_.data();
  }

 private:
  // Turns the scores of one row into weights.
  void weigh(int64_t row, int64_t visible_count, int64_t key_count, float scale, PartialAttention& partial) {
    T* weights = weights_.data() + row * kKeySpan;
    int64_t key = 0;
    if (visible_count > 0) {
      Floats peaks = broadcast(-std::numeric_limits<float>::infinity());
      for (; key < visible_count; key += kLanes) peaks = maximum(visible_scores(row, key, visible_count, scale), peaks);
      const float peak = largest(peaks);
      Floats sums = {};
      for (key = 0; key < visible_count; key += kLanes) {
        const Floats weight = exponential(visible_scores(row, key, visible_count, scale) - peak);
        sums += weight;
        store(weights + key, weight);
      }
      partial = {peak, sum(sums)};
    }
    std::fill_n(weights + key, key_count - key, T{});
  }

  // 16 scores from `key` on, -infinity for those that the row does not see.
  Floats visible_scores(int64_t row, int64_t key, int64_t visible_count, float scale) const {
    const float* panel = scores_.data() + key / kPanelWidth * kPanelWidth * kRowBlock;
    const Floats scaled = load(panel + row * kPanelWidth + key % kPanelWidth) * scale;
    if (visible_count - key >= kLanes) return scaled;
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Floats hidden = broadcast(-std::numeric_limits<float>::infinity());
    return lanes < static_cast<int32_t>(visible_count - key) ? scaled : hidden;
  }

  int64_t head_size_;
  int64_t padded_size_;
  Buffer<T> key_panels_;
  Buffer<T> value_panels_;
  Buffer<T> zeros_;
  Buffer<float> scores_;
  Buffer<T> weights_;
  Buffer<float> values_;
  alignas(64) float panel_[kRowBlock * kPanelWidth];
};

}  // namespace headrace
