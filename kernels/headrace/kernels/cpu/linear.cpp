#include "linear.h"

#include <algorithm>
#include <optional>

#include "buffer.h"
#include "panel_product.h"
#include "threads.h"

namespace headrace {
namespace {

// Bytes of the input that stay in the second-level cache while the panels pass by.
constexpr int64_t kInputBytesPerPass = 640 * 1024;

// The weight's row for an output of a panel; out_count for padding.
int64_t weight_row(const LinearShape& shape, int64_t panel, int64_t out) {
  if (!shape.is_gated) return std::min(panel * kPanelWidth + out, shape.out_count);
  const int64_t gate = panel * kLanes + out % kLanes;
  if (gate >= shape.output_width()) return shape.out_count;
  return out < kLanes ? gate : shape.output_width() + gate;
}

template <typename T>
void store_at_most(T* target, Floats values, int64_t count) {
  if (count >= kLanes) {
    store(target, values);
  } else if (count > 0) {
    store_first(target, values, count);
  }
}

// The sums of up to 32 rows for one panel, and their way to the output.
template <typename T>
class PanelOutput {
 public:
  PanelOutput(const T* bias, const LinearShape& shape, T* output) : bias_(bias), shape_(shape), output_(output) {}

  float* begin(int64_t panel, int64_t first_row, int64_t row_count) {
    panel_ = panel;
    first_row_ = first_row;
    row_count_ = row_count;
    finished_count_ = 0;
    return sums_;
  }

  bool is_finished() const { return finished_count_ == row_count_; }

  // Stores up to `count` more of the rows.
  void finish_some(int64_t count) {
    const int64_t end = std::min(finished_count_ + count, row_count_);
    const int64_t first = panel_ * (shape_.is_gated ? kLanes : kPanelWidth);
    const int64_t width = shape_.output_width();
    for (; finished_count_ < end; ++finished_count_) {
      Floats low = load(sums_ + finished_count_ * kPanelWidth);
      Floats high = load(sums_ + finished_count_ * kPanelWidth + kLanes);
      if (bias_ != nullptr) add_bias(low, high);
      T* target = output_ + (first_row_ + finished_count_) * width + first;
      if (shape_.is_gated) {
        store_at_most(target, silu(low) * high, width - first);
      } else {
        store_at_most(target, low, width - first);
        store_at_most(target + kLanes, high, width - first - kLanes);
      }
    }
  }

 private:
  void add_bias(Floats& low, Floats& high) const {
    const int64_t low_row = weight_row(shape_, panel_, 0);
    const int64_t high_row = weight_row(shape_, panel_, kLanes);
    const int64_t end = shape_.is_gated ? shape_.output_width() : shape_.out_count;
    const int64_t low_count = std::clamp<int64_t>(end - low_row, 0, kLanes);
    const int64_t high_count = std::clamp<int64_t>(shape_.out_count - high_row, 0, kLanes);
    low += load_first(bias_ + low_row, low_count);
    high += load_first(bias_ + high_row, high_count);
  }

  const T* bias_;
  const LinearShape& shape_;
  T* output_;
  int64_t panel_ = 0;
  int64_t first_row_ = 0;
  int64_t row_count_ = 0;
  int64_t finished_count_ = 0;
  alignas(64) float sums_[kRowBlock * kPanelWidth];
};

// The input with rows of whole panel depths.
template <typename T>
Buffer<T> pad_rows(const T* input, const LinearShape& shape, int64_t depth) {
  Buffer<T> padded(shape.row_count * depth);
  for (int64_t row = 0; row < shape.row_count; ++row)
    std::copy_n(input + row * shape.row_stride, shape.in_count, padded.data() + row * depth);
  return padded;
}

// NOTE: a gated panel has room for 16 gates, so a panel more than the plain width needs may be begun.
int64_t panel_count(const LinearShape& shape) {
  const int64_t outputs_per_panel = shape.is_gated ? kLanes : kPanelWidth;
  return (shape.output_width() + outputs_per_panel - 1) / outputs_per_panel;
}

int64_t panel_size(const LinearShape& shape) { return round_up(shape.in_count, kPanelDepth) * kPanelWidth; }

}  // namespace

int64_t packed_size(const LinearShape& shape) { return panel_count(shape) * panel_size(shape); }

template <typename T>
void pack_weight(const T* weight, int64_t weight_stride, const LinearShape& shape, T* panels) {
  const int64_t size = panel_size(shape);
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    for (int64_t panel = share.begin; panel < share.end; ++panel)
      for (int64_t out = 0; out < kPanelWidth; ++out) {
        const int64_t row = weight_row(shape, panel, out);
        if (row == shape.out_count) continue;
        for (int64_t in = 0; in < shape.in_count; ++in)
          panels[panel * size + panel_offset<T>(in, out)] = weight[row * weight_stride + in];
      }
  });
}

template <typename T>
void linear(const T* input, const T* panels, const T* bias, const LinearShape& shape, T* output) {
  const int64_t depth = round_up(shape.in_count, kPanelDepth);
  const int64_t size = panel_size(shape);
  int64_t row_stride = shape.row_stride;
  std::optional<Buffer<T>> padded;
  if (depth != shape.in_count) {
    padded.emplace(pad_rows(input, shape, depth));
    input = padded->data();
    row_stride = depth;
  }
  const int64_t rows_per_pass =
      std::max(kRowBlock, kInputBytesPerPass / (depth * static_cast<int64_t>(sizeof(T))) / kRowBlock * kRowBlock);
  // Rows to store in each of the depth / 32 gaps of a product.
  const int64_t rows_per_gap = (kRowBlock * kPanelDepth + depth - 1) / depth;
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    PanelProduct<T> panel_product;
    // NOTE: the outputs of one product are stored while the next runs. Alone, the stores took a quarter of the time.
    PanelOutput<T> outputs[2] = {{bias, shape, output}, {bias, shape, output}};
    int current = 0;
    for (int64_t pass = 0; pass < shape.row_count; pass += rows_per_pass) {
      const int64_t pass_end = std::min(pass + rows_per_pass, shape.row_count);
      for (int64_t panel = share.begin; panel < share.end; ++panel)
        for (int64_t row = pass; row < pass_end; row += kRowBlock) {
          const int64_t row_count = std::min(kRowBlock, pass_end - row);
          PanelOutput<T>& previous = outputs[1 - current];
          float* sums = outputs[current].begin(panel, row, row_count);
          panel_product.multiply(input + row * row_stride, row_stride, row_count, panels + panel * size, depth,
                                 row == pass, sums, [&] { previous.finish_some(rows_per_gap); });
          previous.finish_some(kRowBlock);
          current = 1 - current;
        }
    }
    outputs[1 - current].finish_some(kRowBlock);
  });
}

template void pack_weight<float>(const float*, int64_t, const LinearShape&, float*);
template void pack_weight<BFloat16>(const BFloat16*, int64_t, const LinearShape&, BFloat16*);
template void linear<float>(const float*, const float*, const float*, const LinearShape&, float*);
template void linear<BFloat16>(const BFloat16*, const BFloat16*, const BFloat16*, const LinearShape&, BFloat16*);

}  // namespace headrace
