#include "linear.h"

#include <atomic>
#include <optional>

#include "buffer.h"
#include "linear_tasks.h"
#include "team.h"
#include "threads.h"

namespace headrace {
namespace {

// The rows of an input, and the memory for what they have to become before they are multiplied.
template <typename T, typename W>
class InputRows {
 public:
  InputRows(const T* input, const LinearShape& shape) : input_(input), stride_(shape.row_stride) {
    const int64_t depth = round_up(shape.in_count, kStepDepth<W>);
    if (depth == shape.in_count) return;
    padded_.emplace(shape.row_count * depth);
    for (int64_t row = 0; row < shape.row_count; ++row)
      std::copy_n(input + row * stride_, shape.in_count, padded_->data() + row * depth);
    input_ = padded_->data();
    stride_ = depth;
  }

  PlainRows<T> rows() const { return {input_, stride_}; }

 private:
  const T* input_;
  int64_t stride_;
  std::optional<Buffer<T>> padded_;
};

#if defined(__AMX_INT8__)
template <>
class InputRows<BFloat16, TileByte> {
 public:
  InputRows(const BFloat16* input, const LinearShape& shape)
      : depth_(round_up(shape.in_count, kStepDepth<TileByte>)),
        parts_(SplitRows::capacity(shape.row_count, depth_)),
        factors_(shape.row_count),
        rows_(parts_.data(), factors_.data(), shape.row_count, depth_) {
    parallel_shares(shape.row_count, shape.row_count / kRowBlock, [&](Share share) {
      for (int64_t row = share.begin; row < share.end; ++row)
        rows_.split(row, input + row * shape.row_stride, shape.in_count);
    });
  }

  const SplitRows& rows() const { return rows_; }

 private:
  const int64_t depth_;
  Buffer<TileByte> parts_;
  Buffer<float> factors_;
  const SplitRows rows_;
};
#endif

// Copies the rows of a panel into it; it is zeroed.
template <typename W>
void pack_panel(const W* weight, int64_t weight_stride, const LinearShape& shape, int64_t panel, W* target) {
  for (int64_t out = 0; out < kPanelWidth; ++out) {
    const int64_t row = weight_row(shape, panel, out);
    if (row == shape.out_count) continue;
    for (int64_t in = 0; in < shape.in_count; ++in) target[panel_offset<W>(in, out)] = weight[row * weight_stride + in];
  }
}

}  // namespace

template <typename W>
int64_t packed_size(const LinearShape& shape) {
  return panel_count(shape) * panel_size<W>(shape);
}

template <typename W>
void pack_weight(const W* weight, int64_t weight_stride, const LinearShape& shape, W* panels) {
  const int64_t size = panel_size<W>(shape);
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    for (int64_t panel = share.begin; panel < share.end; ++panel)
      pack_panel(weight, weight_stride, shape, panel, panels + panel * size);
  });
}

bool pack_twelve_bits(const BFloat16* weight, int64_t weight_stride, const LinearShape& shape, TwelveBitStep* panels) {
  const int64_t step_count = panel_size<TwelveBitStep>(shape);
  std::atomic<bool> fits = true;
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    for (int64_t panel = share.begin; panel < share.end && fits; ++panel) {
      Buffer<BFloat16> plain(step_count * kStepWeights);
      pack_panel(weight, weight_stride, shape, panel, plain.data());
      for (int64_t step = 0; step < step_count; ++step)
        if (!narrow_step(plain.data() + step * kStepWeights, panels[panel * step_count + step])) fits = false;
    }
  });
  return fits;
}

void expand_twelve_bits(const TwelveBitStep* steps, int64_t step_count, BFloat16* panels) {
  parallel_shares(step_count, max_thread_count(), [&](Share share) {
    for (int64_t step = share.begin; step < share.end; ++step) widen_step(steps + step, panels + step * kStepWeights);
  });
}

template <typename W, typename V>
void pack_blocks(const V* values, const uint16_t* scales, const uint16_t* minima, const LinearShape& shape, W* panels) {
  const int64_t step_count = shape.in_count / kPanelDepth;
  parallel_shares(panel_count(shape), max_thread_count(), [&](Share share) {
    for (int64_t panel = share.begin; panel < share.end; ++panel)
      for (int64_t out = 0; out < kPanelWidth; ++out) {
        const int64_t row = weight_row(shape, panel, out);
        if (row == shape.out_count) continue;
        for (int64_t index = 0; index < step_count; ++index) {
          W& step = panels[panel * step_count + index];
          const int64_t block = row * step_count + index;
          step.scales[out] = scales[block];
          if constexpr (std::is_same_v<W, FourBitStep>)
            if (minima != nullptr) step.minima[out] = minima[block];
          for (int64_t in = 0; in < kPanelDepth; ++in) step.set(in, out, values[block * kPanelDepth + in]);
        }
      }
  });
}

template <typename T, typename W>
void linear(const LinearTensors<T, W>& tensors, const LinearShape& shape) {
  const InputRows<T, W> input(tensors.input, shape);
  const LinearTasks<T, W> tasks(tensors, input.rows(), shape);
  const int64_t thread_count = std::max<int64_t>(std::min(max_thread_count(), tasks.count()), 1);
  Team team(1, thread_count);
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
  {
    const TeamPlace place(team);
    PanelProduct<T> product;
    place.share(0, tasks.count(), [&](TeamPart& part) { tasks.run(product, part); });
  }
}

#define INSTANTIATE(W)                                 \
  template int64_t packed_size<W>(const LinearShape&); \
  template void linear<float, W>(const LinearTensors<float, W>&, const LinearShape&);
#define INSTANTIATE_NARROW(W) template void linear<BFloat16, W>(const LinearTensors<BFloat16, W>&, const LinearShape&);
INSTANTIATE(float)
INSTANTIATE(int8_t)
INSTANTIATE(EightBitStep)
INSTANTIATE(FourBitStep)
INSTANTIATE_NARROW(BFloat16)
INSTANTIATE_NARROW(IntegersFor<BFloat16>::Type)
INSTANTIATE_NARROW(EightBitStep)
INSTANTIATE_NARROW(FourBitStep)
INSTANTIATE_NARROW(TwelveBitStep)
#if defined(__AMX_INT8__)
template int64_t packed_size<TileByte>(const LinearShape&);
template void pack_weight<TileByte>(const TileByte*, int64_t, const LinearShape&, TileByte*);
#endif
#undef INSTANTIATE
#undef INSTANTIATE_NARROW
template int64_t packed_size<BFloat16>(const LinearShape&);
template int64_t packed_size<TwelveBitStep>(const LinearShape&);
template void pack_weight<float>(const float*, int64_t, const LinearShape&, float*);
template void pack_weight<BFloat16>(const BFloat16*, int64_t, const LinearShape&, BFloat16*);
template void pack_weight<int8_t>(const int8_t*, int64_t, const LinearShape&, int8_t*);
template void pack_blocks(const int8_t*, const uint16_t*, const uint16_t*, const LinearShape&, EightBitStep*);
template void pack_blocks(const uint8_t*, const uint16_t*, const uint16_t*, const LinearShape&, FourBitStep*);

}  // namespace headrace
