// Attention of some query rows to one span of keys: the scores, their weights and the weighted values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "buffer.h"
#include "panel_product.h"
#include "vector.h"

namespace headrace {

// Keys that are looked at together.
// NOTE: contexts are cut at multiples of this whatever the queries are, and the parts are merged in order. So a
// token's result is the same, to the last bit, whether it was decoded or computed in a chunk of any size.
constexpr int64_t kKeySpan = 256;

// The most query rows for which few_queries.h is faster, where there are tiles.
constexpr int64_t kFewQueries = 8;

// What attention to a part of the keys has given for some query rows: the largest score of each, scaled by the unit of
// Precision, the sum of the weights power(score - peak), and the values so weighted. `peaks` and `weight_sums` have
// room for a multiple of kLanes; a row that saw no key has a peak of -infinity and zeros.
struct PartialAttention {
  float* peaks;
  float* weight_sums;
  float* values;  // [row][width]

  // The same of the rows from `row` on.
  PartialAttention from(int64_t row, int64_t width) const {
    return {peaks + row, weight_sums + row, values + row * width};
  }
};

// Memory for the partial attention of so many query rows.
class PartialRows {
 public:
  PartialRows(int64_t row_count, int64_t width)
      : width_(width), peaks_(row_count + kLanes), weight_sums_(row_count + kLanes), values_(row_count * width) {}

  PartialAttention from(int64_t row) {
    return PartialAttention{peaks_.data(), weight_sums_.data(), values_.data()}.from(row, width_);
  }

  // Takes the first rows from others.
  void copy(const PartialAttention& rows, int64_t row_count) {
    std::copy_n(rows.peaks, row_count, peaks_.data());
    std::copy_n(rows.weight_sums, row_count, weight_sums_.data());
    std::copy_n(rows.values, row_count * width_, values_.data());
  }

 private:
  int64_t width_;
  Buffer<float> peaks_;
  Buffer<float> weight_sums_;
  Buffer<float> values_;
};

// Adds the parts of rows to their totals; `width` is a multiple of kLanes. A part that saw no key changes no bit.
template <typename T>
inline void merge(const PartialAttention& part, int64_t row_count, int64_t width, const PartialAttention& total) {
  for (int64_t begin = 0; begin < row_count; begin += kLanes) {
    const Floats part_peaks = load(part.peaks + begin);
    const Floats total_peaks = load(total.peaks + begin);
    // Finite, so that a difference is no number only where a peak is none.
    const Floats peaks = maximum(broadcast(std::numeric_limits<float>::lowest()), maximum(total_peaks, part_peaks));
    const Floats part_factors = Precision<T>::power(part_peaks - peaks);
    const Floats total_factors = Precision<T>::power(total_peaks - peaks);
    store(total.peaks + begin, peaks);
    store(total.weight_sums + begin,
          load(total.weight_sums + begin) * total_factors + load(part.weight_sums + begin) * part_factors);
    for (int64_t row = begin; row < std::min(begin + kLanes, row_count); ++row) {
      const float* values = part.values + row * width;
      float* totals = total.values + row * width;
      for (int64_t offset = 0; offset < width; offset += kLanes)
        store(totals + offset,
              load(totals + offset) * total_factors[row - begin] + load(values + offset) * part_factors[row - begin]);
    }
  }
}

// Where the keys and values of up to kKeySpan tokens lie.
template <typename T>
struct KeySpan {
  int64_t count = 0;
  const T* keys[kKeySpan];
  const T* values[kKeySpan];
  // Whether each 16 of them, from the first on, follow one another in memory, with room up to the 16th.
  bool is_in_runs = false;

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
        query_columns_(padded_size_ * kFewQueries),
        scores_(kKeySpan * kRowBlock),
        weights_(kKeySpan * kRowBlock) {}

  int64_t head_size() const { return head_size_; }
  int64_t padded_size() const { return padded_size_; }

  // Takes the keys and values of a span for up to `row_count` query rows at once, and has those of another fetched
  // meanwhile.
  void load_span(const KeySpan<T>& span, const KeySpan<T>& ahead, int64_t row_count) {
    span_ = &span;
    ahead_ = &ahead;
    reads_keys_in_place_ = can_read_keys_in_place(row_count);
    if (!reads_keys_in_place_) pack_span_keys();
    // NOTE: a weight of zero does not silence what is no number, so the keys up to the next panel are real zeros.
    for (int64_t key = 0; key < round_up(span.count, kPanelDepth); key += 2) {
      const T* first = key < span.count ? span.values[key] : zeros_.data();
      const T* second = key + 1 < span.count ? span.values[key + 1] : zeros_.data();
      pack_value_pair(first, second, head_size_, key / 2, value_panels_.data());
    }
  }

  // Attends rows [row_count, padded_size] to the first visible_counts[row] keys of the span. What comes out is written
  // to `part`, for all rows.
  void attend(PanelProduct<T>& product, const T* rows, int64_t row_count, const int64_t* visible_counts, float scale,
              const PartialAttention& part) {
    const int64_t key_count = round_up(*std::max_element(visible_counts, visible_counts + row_count), kPanelWidth);
    if constexpr (kReadsKeysInPlace) {
      if (reads_keys_in_place_) {
        if (row_count <= 4) {
          attend_few<4>(product, rows, row_count, visible_counts, key_count, scale, part);
        } else {
          attend_few<kFewQueries>(product, rows, row_count, visible_counts, key_count, scale, part);
        }
        return;
      }
    }
    for (int64_t key = 0; key < key_count; key += kPanelWidth)
      product.multiply(rows, padded_size_, row_count, {key_panels_.data() + key * padded_size_}, padded_size_, nullptr,
                       scores_.data() + key * kRowBlock, kPanelWidth, [] {});
    weigh(row_count, visible_counts, key_count, scale, part);
    for (int64_t element = 0; element < padded_size_; element += kPanelWidth)
      product.multiply(weights_.data(), kKeySpan, row_count, {value_panels_.data() + element * kKeySpan}, key_count,
                       nullptr, part.values + element, padded_size_, [] {});
  }

 private:
#if defined(__AMX_BF16__)
  static constexpr bool kReadsKeysInPlace = std::is_same_v<T, BFloat16>;
#else
  static constexpr bool kReadsKeysInPlace = false;
#endif

  void pack_span_keys() {
    for (int64_t key = 0; key < span_->count; key += kLanes) {
      pack_keys(
          span_->keys + key, std::min(kLanes, span_->count - key), head_size_,
          key_panels_.data() + key / kPanelWidth * kPanelWidth * padded_size_ + panel_offset<T>(0, key % kPanelWidth));
      ahead_->fetch(key, key + kLanes, head_size_);
    }
    ahead_->fetch(round_up(span_->count, kLanes), ahead_->count, head_size_);
  }

  bool can_read_keys_in_place(int64_t row_count) const {
    if constexpr (kReadsKeysInPlace)
      return row_count <= kFewQueries && head_size_ % kPanelDepth == 0 && span_->is_in_runs;
    return false;
  }

  // The same as `attend`, with the keys where they are and the queries as kColumnCount columns.
  template <int kColumnCount>
  void attend_few(PanelProduct<T>& product, const T* rows, int64_t row_count, const int64_t* visible_counts,
                  int64_t key_count, float scale, const PartialAttention& part) {
#if defined(__AMX_BF16__)
    product.shape_for_few_queries(row_count, kColumnCount);
    turn_queries(rows, padded_size_, row_count, head_size_, kColumnCount, query_columns_.data());
    for (int64_t key = 0; key < key_count; key += kPanelWidth) {
      const int64_t second = key + kLanes < span_->count ? key + kLanes : key;
      score_few<kColumnCount>(query_columns_.data(), row_count, head_size_, span_->keys[key], span_->keys[second],
                              scores_.data() + key * kRowBlock);
      ahead_->fetch(key, key + kPanelWidth, head_size_);
    }
    ahead_->fetch(key_count, ahead_->count, head_size_);
    weigh(row_count, visible_counts, key_count, scale, part);
    for (int64_t element = 0; element < padded_size_; element += kPanelWidth)
      weigh_few(weights_.data(), kKeySpan, value_panels_.data() + element * kKeySpan, key_count, part.values + element,
                padded_size_);
#endif
  }

  // Turns the scores of the rows into weights.
  void weigh(int64_t row_count, const int64_t* visible_counts, int64_t key_count, float scale,
             const PartialAttention& part) {
    for (int64_t row = 0; row < row_count; ++row)
      weigh_row(row, visible_counts[row], key_count, scale * Precision<T>::kUnit, part);
  }

  void weigh_row(int64_t row, int64_t visible_count, int64_t key_count, float factor, const PartialAttention& part) {
    T* weights = weights_.data() + row * kKeySpan;
    const int64_t whole_count = visible_count / kLanes * kLanes;
    const bool has_rest = whole_count < visible_count;
    Floats peaks = broadcast(-std::numeric_limits<float>::infinity());
    for (int64_t key = 0; key < whole_count; key += kLanes) peaks = maximum(scores_of(row, key), peaks);
    const Floats rest = has_rest ? first_scores_of(row, whole_count, visible_count - whole_count) : peaks;
    const float peak = largest(maximum(rest, peaks)) * factor;
    Floats sums = {};
    for (int64_t key = 0; key < whole_count; key += kLanes) {
      const Floats weight = Precision<T>::power(scores_of(row, key) * factor - peak);
      sums += weight;
      store(weights + key, weight);
    }
    if (has_rest) {
      const Floats weight = Precision<T>::power(rest * factor - peak);
      sums += weight;
      store(weights + whole_count, weight);
    }
    part.peaks[row] = peak;
    part.weight_sums[row] = sum(sums);
    const int64_t end = round_up(visible_count, kLanes);
    std::fill_n(weights + end, key_count - end, T{});
  }

  // 16 scores from `key` on.
  Floats scores_of(int64_t row, int64_t key) const {
    return load(scores_.data() + key / kPanelWidth * kPanelWidth * kRowBlock + row * kPanelWidth + key % kPanelWidth);
  }

  // The same, -infinity for all but the first `count`.
  Floats first_scores_of(int64_t row, int64_t key, int64_t count) const {
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lanes < static_cast<int32_t>(count) ? scores_of(row, key)
                                               : broadcast(-std::numeric_limits<float>::infinity());
  }

  int64_t head_size_;
  int64_t padded_size_;
  const KeySpan<T>* span_ = nullptr;
  const KeySpan<T>* ahead_ = nullptr;
  Buffer<T> key_panels_;
  Buffer<T> value_panels_;
  Buffer<T> zeros_;
  Buffer<T> query_columns_;
  bool reads_keys_in_place_ = false;
  Buffer<float> scores_;
  Buffer<T> weights_;
};

}  // namespace headrace
