// A linear layer as tasks that threads share: a task is the product of some rows of the input with a panel or two.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "block_steps.h"
#include "buffer.h"
#include "linear.h"
#include "panel_product.h"
#include "plain_rows.h"
#include "twelve_bit_steps.h"
#include "widen_panel.h"

#if defined(__AMX_INT8__)
#include "split_rows.h"
#endif

namespace headrace {

// Bytes of the input that stay in the second-level cache while the panels pass by.
constexpr int64_t kInputBytesPerPass = 640 * 1024;

// The weight's row for an output of a panel; out_count for padding.
inline int64_t weight_row(const LinearShape& shape, int64_t panel, int64_t out) {
  if (!shape.is_gated) return std::min(panel * kPanelWidth + out, shape.out_count);
  const int64_t gate = panel * kLanes + out % kLanes;
  if (gate >= shape.output_width()) return shape.out_count;
  return out < kLanes ? gate : shape.output_width() + gate;
}

// 16 numbers of a panel's rows of the weight, from `out` on; `missing` where there are none, or no numbers at all.
template <typename T>
inline Floats gather(const T* numbers, float missing, const LinearShape& shape, int64_t panel, int64_t out) {
  Floats gathered = broadcast(missing);
  if (numbers == nullptr) return gathered;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t row = weight_row(shape, panel, out + lane);
    if (row < shape.out_count) gathered[lane] = widen(numbers[row]);
  }
  return gathered;
}

// How the rows of an input of type T come to a product with a weight of type W.
template <typename T, typename W>
struct RowsOf {
  typedef PlainRows<T> Type;
};
#if defined(__AMX_INT8__)
template <>
struct RowsOf<BFloat16, TileByte> {
  typedef SplitRows Type;
};
#endif

// The sums of a block of rows for one panel, and their way to the output.
template <typename T, typename W>
class PanelOutput {
 public:
  typedef typename RowsOf<T, W>::Type Rows;
  typedef typename Rows::Sum Sum;

  PanelOutput(const LinearTensors<T, W>& tensors, const Rows& rows, const LinearShape& shape)
      : tensors_(tensors), rows_(rows), shape_(shape) {}

  Sum* begin(int64_t panel, int64_t first_row, int64_t row_count) {
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
      if (finished_count_ + kStoresAhead < row_count_)
        __builtin_prefetch(tensors_.output + (first_row_ + finished_count_ + kStoresAhead) * width + first, 1, 3);
      Floats low = sums_of_row(0) * scales_[0] + bias_[0];
      Floats high = sums_of_row(kLanes) * scales_[1] + bias_[1];
      if (const float* added_row = added_to(first_row_ + finished_count_)) {
        const float* added = added_row + first;
        low += load_at_most(added, width - first);
        high +=
            load_at_most(added + (shape_.is_gated ? width : kLanes), width - first - (shape_.is_gated ? 0 : kLanes));
      }
      T* target = tensors_.output + (first_row_ + finished_count_) * width + first;
      if (shape_.is_gated) {
        store_at_most(target, silu<T>(low) * high, width - first);
      } else {
        store_at_most(target, low, width - first);
        store_at_most(target + kLanes, high, width - first - kLanes);
      }
    }
  }

 private:
  Floats sums_of_row(int64_t out) const {
    return rows_.sums_of_row(sums_ + out, kPanelWidth, first_row_, finished_count_);
  }

  // What is added to a row, or null.
  const float* added_to(int64_t row) const {
    if (tensors_.added == nullptr) return nullptr;
    const int64_t place = tensors_.added_rows == nullptr ? row : tensors_.added_rows[row];
    return place < 0 ? nullptr : tensors_.added + place * shape_.out_count;
  }

  // Rows between asking for the line that a row is stored to and storing it.
  // NOTE: a store waits until its line is there, and a panel writes a line of each row, all over the output. Over two
  // thousand rows, more than the second-level cache holds, that took a third of the product's time.
  static constexpr int64_t kStoresAhead = 8;

  const LinearTensors<T, W>& tensors_;
  const Rows& rows_;
  const LinearShape& shape_;
  Floats scales_[2] = {broadcast(1.0f), broadcast(1.0f)};
  Floats bias_[2] = {};
  int64_t panel_ = -1;
  int64_t first_row_ = 0;
  int64_t row_count_ = 0;
  int64_t finished_count_ = 0;
  alignas(64) Sum sums_[kRowBlock * kPanelWidth];
};

// How deep a step of a panel of type W is.
template <typename W>
constexpr int64_t kStepDepth = kPanelDepth;
template <>
inline constexpr int64_t kStepDepth<TileByte> = 64;

// Elements of a weight of type W in a step of a panel.
template <typename W>
constexpr int64_t kStepSize = kStepDepth<W> * kPanelWidth;
template <>
inline constexpr int64_t kStepSize<EightBitStep> = 1;
template <>
inline constexpr int64_t kStepSize<FourBitStep> = 1;
template <>
inline constexpr int64_t kStepSize<TwelveBitStep> = 1;

inline void fetch_lines(const void* begin, int64_t byte_count) {
  for (int64_t byte = 0; byte < byte_count; byte += 64)
    __builtin_prefetch(static_cast<const char*>(begin) + byte, 0, 3);
}

// A panel in the type that it is multiplied in: where it lies, or widened, some steps before the product reads them, to
// where this thread keeps it.
// NOTE: a panel that was widened as a whole had left the first-level cache before it was read, and eight bits were no
// faster than sixteen.
template <typename T, typename W>
class WidenedPanel {
 public:
  // Takes on a panel of so many steps, which so many rows are multiplied by; `ahead` is the panel that is wanted after
  // it. Returns where the product finds it.
  PanelView<T> begin(const W* panel, const W* ahead, int64_t step_count, int64_t row_count) {
    const bool rows_pass_by = row_count > kRowsKept;
    if constexpr (std::is_same_v<T, W>) {
      return {panel, -1, rows_pass_by};
    } else {
      panel_ = panel;
      ahead_ = ahead;
      step_count_ = step_count;
      next_step_ = 0;
      step_mask_ = PanelProduct<T>::kReadsPanelOnce && row_count <= kRowBlock ? kKeptSteps - 1 : -1;
      widened_ = room(std::max(step_count, kKeptSteps) * kPanelDepth * kPanelWidth);
      for (int64_t step = 0; step < kLead; ++step) advance();
      return {widened_, step_mask_ * kPanelDepth + kPanelDepth - 1, rows_pass_by};
    }
  }

  // Widens another step, if there is one. To be called after each step of the product.
  void advance() {
    if constexpr (!std::is_same_v<T, W>) {
      if (next_step_ == step_count_) return;
      constexpr int64_t kStepBytes = kStepSize<W> * sizeof(W);
      constexpr int64_t kStepsAhead = (kFetchAheadBytes + kStepBytes - 1) / kStepBytes;
      const int64_t wanted = next_step_ + kStepsAhead;
      if (wanted < step_count_) {
        fetch_lines(panel_ + wanted * kStepSize<W>, kStepBytes);
      } else if (wanted - step_count_ < step_count_) {
        fetch_lines(ahead_ + (wanted - step_count_) * kStepSize<W>, kStepBytes);
      }
      widen_step(panel_ + next_step_ * kStepSize<W>, widened_ + (next_step_ & step_mask_) * kPanelDepth * kPanelWidth);
      ++next_step_;
    }
  }

 private:
  // Rows that stay in the first-level cache from panel to panel, beside what passes by. Twice as many would fill it.
  static constexpr int64_t kRowsKept = 16;

  // Steps between widening and use, so that what was stored has left the store buffer.
  static constexpr int64_t kLead = 2;

  // NOTE: a panel that is read once is kept for so many steps only. As a whole it would push the input and what was
  // fetched out of the first-level cache.
  static constexpr int64_t kKeptSteps = 8;

  static T* room(int64_t element_count) {
    static thread_local std::optional<Buffer<T>> buffer;
    static thread_local int64_t size = 0;
    if (size < element_count) {
      buffer.emplace(element_count);
      size = element_count;
    }
    return buffer->data();
  }

  const W* panel_ = nullptr;
  const W* ahead_ = nullptr;
  T* widened_ = nullptr;
  int64_t step_count_ = 0;
  int64_t next_step_ = 0;
  int64_t step_mask_ = -1;
};

// NOTE: a gated panel has room for 16 gates, so a panel more than the plain width needs may be begun.
inline int64_t panel_count(const LinearShape& shape) {
  const int64_t outputs_per_panel = shape.is_gated ? kLanes : kPanelWidth;
  return (shape.output_width() + outputs_per_panel - 1) / outputs_per_panel;
}

template <typename W>
inline int64_t panel_size(const LinearShape& shape) {
  return round_up(shape.in_count, kStepDepth<W>) / kStepDepth<W> * kStepSize<W>;
}

// NOTE: a gated panel makes half a cache line of each row's output. Two threads that each write a half of a line take
// it from each other again and again, so one thread does both.
constexpr int64_t kGatedPanelsPerTask = 2;

// The tasks of one call of a layer.
template <typename T, typename W>
class LinearTasks {
 public:
  typedef typename RowsOf<T, W>::Type Rows;

  // The rows are filled up with zeros to whole steps, and at least as far apart. They are those of the tensors' input.
  LinearTasks(const LinearTensors<T, W>& tensors, const Rows& rows, const LinearShape& shape)
      : tensors_(tensors),
        rows_(rows),
        shape_(shape),
        depth_(round_up(shape.in_count, kStepDepth<W>)),
        panel_count_(headrace::panel_count(shape)),
        rows_per_block_(rows.rows_per_block()),
        rows_per_pass_(std::max<int64_t>(kInputBytesPerPass / rows.row_bytes(depth_) / rows_per_block_, 1) *
                       rows_per_block_),
        panels_per_task_(shape.is_gated ? kGatedPanelsPerTask : 1),
        tasks_per_pass_((panel_count_ + panels_per_task_ - 1) / panels_per_task_),
        count_((shape.row_count + rows_per_pass_ - 1) / rows_per_pass_ * tasks_per_pass_) {}

  int64_t count() const { return count_; }

  // Does the tasks that `part` claims.
  template <typename Part>
  void run(PanelProduct<T>& product, Part& part) const {
    int64_t task = part.claim();
    // NOTE: the outputs of one product are stored while the next runs. Alone, the stores took a quarter of the time.
    PanelOutput<T, W> outputs[2] = {{tensors_, rows_, shape_}, {tensors_, rows_, shape_}};
    WidenedPanel<Element, W> widened;
    int current = 0;
    while (task < count_) {
      const int64_t next_task = part.claim();
      const int64_t pass_begin = task / tasks_per_pass_ * rows_per_pass_;
      const int64_t pass_end = std::min(pass_begin + rows_per_pass_, shape_.row_count);
      const int64_t panel_end = std::min(first_panel(task) + panels_per_task_, panel_count_);
      for (int64_t panel = first_panel(task); panel < panel_end; ++panel) {
        const int64_t next_panel = panel + 1 < panel_end ? panel + 1 : first_panel(std::min(next_task, count_ - 1));
        const W* ahead = panel_weights(next_panel);
        const PanelView<Element> view =
            widened.begin(panel_weights(panel), ahead, depth_ / kStepDepth<W>, pass_end - pass_begin);
        for (int64_t row = pass_begin; row < pass_end; row += rows_per_block_) {
          const int64_t row_count = std::min(rows_per_block_, pass_end - row);
          auto* sums = outputs[current].begin(panel, row, row_count);
          multiply(row, row_count, view, row == pass_begin ? ahead : nullptr, product, widened, sums,
                   outputs[1 - current]);
          current = 1 - current;
        }
      }
      task = next_task;
    }
    outputs[1 - current].finish_some(rows_per_block_);
  }

 private:
  typedef typename Rows::Element Element;

  // Multiplies rows by a panel, and meanwhile widens it and stores what the product before has given.
  void multiply(int64_t row, int64_t row_count, PanelView<Element> panel, const W* ahead, PanelProduct<T>& product,
                WidenedPanel<Element, W>& widened, typename Rows::Sum* sums, PanelOutput<T, W>& previous) const {
    // Rows to store in each of the gaps of a product, one after each step.
    const int64_t rows_per_gap = (rows_per_block_ * kStepDepth<W> + depth_ - 1) / depth_;
    // What was widened has been fetched.
    const Element* fetched_ahead = nullptr;
    if constexpr (std::is_same_v<Element, W>) fetched_ahead = ahead;
    product.multiply(rows_.block(row), rows_.stride(), rows_.line_count(row_count), panel, depth_, fetched_ahead, sums,
                     kPanelWidth, [&] {
                       widened.advance();
                       previous.finish_some(rows_per_gap);
                     });
    previous.finish_some(rows_per_block_);
  }

  int64_t first_panel(int64_t task) const { return task % tasks_per_pass_ * panels_per_task_; }
  const W* panel_weights(int64_t panel) const { return tensors_.panels + panel * panel_size<W>(shape_); }

  LinearTensors<T, W> tensors_;
  Rows rows_;
  LinearShape shape_;
  int64_t depth_;
  int64_t panel_count_;
  int64_t rows_per_block_;
  int64_t rows_per_pass_;
  int64_t panels_per_task_;
  int64_t tasks_per_pass_;
  int64_t count_;
};

}  // namespace headrace
