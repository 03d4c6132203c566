#include "linear.h"

#include <algorithm>
#include <optional>
#include <type_traits>

#include "buffer.h"
#include "panel_product.h"
#include "threads.h"
#include "widen_panel.h"

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

// 16 numbers of a panel's rows of the weight, from `out` on; `missing` where there are none, or no numbers at all.
template <typename T>
Floats gather(const T* numbers, float missing, const LinearShape& shape, int64_t panel, int64_t out) {
  Floats gathered = broadcast(missing);
  if (numbers == nullptr) return gathered;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t row = weight_row(shape, panel, out + lane);
    if (row < shape.out_count) gathered[lane] = widen(numbers[row]);
  }
  return gathered;
}

// The sums of up to 32 rows for one panel, and their way to the output.
template <typename T, typename W>
class PanelOutput {
 public:
  PanelOutput(const LinearTensors<T, W>& tensors, const LinearShape& shape) : tensors_(tensors), shape_(shape) {}

  float* begin(int64_t panel, int64_t first_row, int64_t row_count) {
    if (panel != panel_ && (tensors_.scales != nullptr || tensors_.bias != nullptr)) {
      for (int half = 0; half < 2; ++half) {
        scales_[half] = gather(tensors_.scales, 1.0f, shape_, panel, half * kLanes);
        bias_[half] = gather(tensors_.bias, 0.0f, shape_, panel, half * kLanes);
      }
    }
    panel_ = panel;
    first_row_ = first_row;
    row_count_ = row_count;
    finished_count_ = 0;
    return sums_;
  }

  // Stores up to `count` more of the rows.
  void finish_some(int64_t count) {
    const int64_t end = std::min(finished_count_ + count, row_count_);
    const int64_t first = panel_ * (shape_.is_gated ? kLanes : kPanelWidth);
    const int64_t width = shape_.output_width();
    for (; finished_count_ < end; ++finished_count_) {
      const float* sums = sums_ + finished_count_ * kPanelWidth;
      const Floats low = load(sums) * scales_[0] + bias_[0];
      const Floats high = load(sums + kLanes) * scales_[1] + bias_[1];
      T* target = tensors_.output + (first_row_ + finished_count_) * width + first;
      if (shape_.is_gated) {
        store_at_most(target, silu(low) * high, width - first);
      } else {
        store_at_most(target, low, width - first);
        store_at_most(target + kLanes, high, width - first - kLanes);
      }
    }
  }

 private:
  const LinearTensors<T, W>& tensors_;
  const LinearShape& shape_;
  Floats scales_[2] = {broadcast(1.0f), broadcast(1.0f)};
  Floats bias_[2] = {};
  int64_t panel_ = -1;
  int64_t first_row_ = 0;
  int64_t row_count_ = 0;
  int64_t finished_count_ = 0;
  alignas(64) float sums_[kRowBlock * kPanelWidth];
};

// A panel in the type that it is multiplied in: where it lies, or widened to where this thread keeps it.
template <typename T>
const T* panel_of(const T* panel, int64_t) {
  return panel;
}

template <typename T>
const T* panel_of(const int8_t* panel, int64_t depth) {
  static thread_local std::optional<Buffer<T>> widened;
  static thread_local int64_t widened_depth = 0;
  if (widened_depth < depth) {
    widened.emplace(depth * kPanelWidth);
    widened_depth = depth;
  }
  widen_panel(panel, depth, widened->data());
  return widened->data();
}

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

template <typename W>
void pack_weight(const W* weight, int64_t weight_stride, const LinearShape& shape, W* panels) {
  const int64_t size = panel_size(shape);
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    for (int64_t panel = share.begin; panel < share.end; ++panel)
      for (int64_t out = 0; out < kPanelWidth; ++out) {
        const int64_t row = weight_row(shape, panel, out);
        if (row == shape.out_count) continue;
        for (int64_t in = 0; in < shape.in_count; ++in)
          panels[panel * size + panel_offset<W>(in, out)] = weight[row * weight_stride + in];
      }
  });
}

template <typename T, typename W>
void linear(const LinearTensors<T, W>& tensors, const LinearShape& shape) {
  const int64_t depth = round_up(shape.in_count, kPanelDepth);
  const int64_t size = panel_size(shape);
  const T* input = tensors.input;
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
    PanelOutput<T, W> outputs[2] = {{tensors, shape}, {tensors, shape}};
    int current = 0;
    for (int64_t pass = 0; pass < shape.row_count; pass += rows_per_pass) {
      const int64_t pass_end = std::min(pass + rows_per_pass, shape.row_count);
      for (int64_t index = share.begin; index < share.end; ++index) {
        const T* panel = panel_of<T>(tensors.panels + index * size, depth);
        for (int64_t row = pass; row < pass_end; row += kRowBlock) {
          const int64_t row_count = std::min(kRowBlock, pass_end - row);
          PanelOutput<T, W>& previous = outputs[1 - current];
          float* sums = outputs[current].begin(index, row, row_count);
          panel_product.multiply(input + row * row_stride, row_stride, row_count, panel, depth,
                                 std::is_same_v<T, W> && row == pass, sums,
                                 [&] { previous.finish_some(rows_per_gap); });
          previous.finish_some(kRowBlock);
          current = 1 - current;
        }
      }
    }
    outputs[1 - current].finish_some(kRowBlock);
  });
}

template void pack_weight<float>(const float*, int64_t, const LinearShape&, float*);
template void pack_weight<BFloat16>(const BFloat16*, int64_t, const LinearShape&, BFloat16*);
template void pack_weight<int8_t>(const int8_t*, int64_t, const LinearShape&, int8_t*);
template void linear<float, float>(const LinearTensors<float, float>&, const LinearShape&);
template void linear<float, int8_t>(const LinearTensors<float, int8_t>&, const LinearShape&);
template void linear<BFloat16, BFloat16>(const LinearTensors<BFloat16, BFloat16>&, const LinearShape&);
template void linear<BFloat16, int8_t>(const LinearTensors<BFloat16, int8_t>&, const LinearShape&);

}  // namespace headrace
