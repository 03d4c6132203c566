#include "decoder.h"

#include <algorithm>

#include "attention_tasks.h"
#include "decoder_adapters.h"
#include "linear_tasks.h"
#include "row_functions.h"
#include "team.h"
#include "threads.h"
#include "workspace.h"

namespace headrace {
namespace {

// Tokens that a thread takes at once where each is for itself, if all threads get some.
constexpr int64_t kTokensPerTask = 16;

// The phases of a layer, and one before the first layer. Each ends when all of its tasks are done.
enum Phase {
  kQueryKeyValue,
  kRotate,
  kAttend,
  kMerge,
  kGather,
  kSplitAttended,
  kAttentionOutput,
  kMlpNorm,
  kGated,
  kSplitGated,
  kDown,
  kNextNorm,
  // Two for what adapters add to each linear layer.
  kAdapters,
  kPhaseCount = kAdapters + 2 * kLinearKindCount
};

template <typename T, typename W>
class Decoder {
 public:
  Decoder(const DecoderTensors<T>& tensors, const std::vector<DecoderLayer<T, W>>& layers,
          const DecoderAdapters<T>& adapters, const DecoderShape& shape)
      : tensors_(tensors),
        layers_(layers),
        shape_(shape),
        query_width_(shape.attention.head_count * shape.attention.head_size),
        kv_width_(shape.attention.kv_head_count * shape.attention.head_size),
        plan_(plan_attention(tensors.query_starts, tensors.context_lengths, shape.attention)),
        partials_(plan_.partial_count, AttentionTasks<T>::partial_width(shape.attention)),
        adapters_(adapters, shape, tensors.output_tokens),
        team_(1 + static_cast<int64_t>(layers.size()) * kPhaseCount, max_thread_count()) {
    Workspace& workspace = Workspace::of_thread();
    workspace.start(sizeof(T) * shape.token_count *
                        (shape.hidden_size + 2 * query_width_ + 2 * kv_width_ + shape.inner_size) +
                    sizeof(T) * shape.output_count * (query_width_ + shape.hidden_size) + parts_capacity() +
                    sizeof(float) * shape.token_count + kBufferCount * Workspace::kLine);
    normed_ = workspace.take<T>(shape.token_count * shape.hidden_size);
    query_key_value_ = workspace.take<T>(shape.token_count * (query_width_ + 2 * kv_width_));
    attended_ = workspace.take<T>(shape.token_count * query_width_);
    gated_ = workspace.take<T>(shape.token_count * shape.inner_size);
    last_attended_ = workspace.take<T>(shape.output_count * query_width_);
    last_residual_ = workspace.take<T>(shape.output_count * shape.hidden_size);
    parts_ = workspace.take<TileByte>(parts_capacity());
    factors_ = workspace.take<float>(shape.token_count);
  }

  void run() {
    if (shape_.token_count == 0) return;
    const int64_t thread_count = team_.thread_count();
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
    Worker(*this).run();
  }

 private:
  typedef typename RowsOf<T, W>::Type Rows;

  // Whether the input of each linear layer is split before it is multiplied.
  static constexpr bool kSplitsRows = !std::is_same_v<Rows, PlainRows<T>>;

  static constexpr int64_t kBufferCount = 8;

  // One thread's way through the phases.
  class Worker {
   public:
    explicit Worker(Decoder& decoder)
        : decoder_(decoder),
          place_(decoder.team_),
          attention_(decoder.plan_, decoder.partials_, decoder.attention_shape()) {}

    void run() {
      const Decoder& d = decoder_;
      for_tokens(0, d.shape_.token_count, [&](int64_t token) {
        const int64_t place = token * d.shape_.hidden_size;
        normalise(d.tensors_.residual + place, d.tensors_.first_norm, d.shape_.epsilon, d.shape_.hidden_size,
                  d.normed_ + place);
        d.split(token, d.normed_, d.shape_.token_count, d.shape_.hidden_size);
      });
      for (int64_t layer = 0; layer < static_cast<int64_t>(d.layers_.size()); ++layer) run_layer(layer);
    }

   private:
    void run_layer(int64_t index) {
      Decoder& d = decoder_;
      const DecoderLayer<T, W>& layer = d.layers_[index];
      const bool is_last = index + 1 == static_cast<int64_t>(d.layers_.size());
      first_phase_ = 1 + index * kPhaseCount;
      multiply(kQueryKeyValue, d.query_key_value(layer, add(index, kQueryKeyValueKind, false, d.normed_)));
      const RotaryTensors<T> rotary_tensors = d.rotary_tensors(layer);
      const RotaryShape rotary_shape = d.rotary_shape();
      for_tokens(first_phase_ + kRotate, d.shape_.token_count,
                 [&](int64_t token) { rotate_and_write(rotary_tensors, rotary_shape, token); });
      attend(layer);
      // Nothing reads the tokens any more whose hidden states nobody wants.
      if (is_last) gather_outputs();
      const int64_t token_count = is_last ? d.shape_.output_count : d.shape_.token_count;
      T* residual = is_last ? d.last_residual_ : d.tensors_.residual;
      T* normed = is_last ? d.tensors_.output : d.normed_;
      const T* attended = is_last ? d.last_attended_ : d.attended_;
      split_all(kSplitAttended, attended, token_count, d.query_width_);
      const LinearAddend to_output = add(index, kAttentionOutputKind, is_last, attended);
      multiply(kAttentionOutput, d.attention_output(layer, attended, token_count, normed, to_output));
      add_norm(kMlpNorm, layer.mlp_norm, token_count, normed, residual);
      multiply(kGated, d.gated(layer, token_count, normed, add(index, kGatedKind, is_last, normed)));
      split_all(kSplitGated, d.gated_, token_count, d.shape_.inner_size);
      multiply(kDown, d.down(layer, token_count, normed, add(index, kDownKind, is_last, d.gated_)));
      add_norm(kNextNorm, layer.next_norm, token_count, normed, residual);
    }

    void multiply(Phase phase, const LinearTasks<T, W>& tasks) {
      place_.share(first_phase_ + phase, tasks.count(), [&](TeamPart& part) { tasks.run(product_, part); });
    }

    // Computes what adapters add to a linear layer.
    LinearAddend add(int64_t layer, LinearKind kind, bool is_of_outputs, const T* input) {
      Decoder& d = decoder_;
      if (!d.adapters_.adds(layer, kind)) return {};
      const LowRankTasks<T> tasks = d.adapters_.tasks(layer, kind, is_of_outputs, input);
      const int64_t phase = first_phase_ + kAdapters + 2 * kind;
      place_.share_each(phase, tasks.narrow_count(), [&](int64_t task) { tasks.multiply_narrow(task); });
      place_.share_each(phase + 1, tasks.wide_count(), [&](int64_t task) { tasks.multiply_wide(task); });
      return d.adapters_.addend(is_of_outputs);
    }

    void attend(const DecoderLayer<T, W>& layer) {
      attention_.set_tensors(decoder_.attention_tensors(layer));
      place_.share(first_phase_ + kAttend, attention_.count(), [&](TeamPart& part) { attention_.run(product_, part); });
      place_.share_each(first_phase_ + kMerge, attention_.merge_count(),
                        [&](int64_t merge) { attention_.merge_parts(merge); });
    }

    void add_norm(Phase phase, const T* weight, int64_t token_count, T* normed, T* residual) {
      const int64_t width = decoder_.shape_.hidden_size;
      for_tokens(first_phase_ + phase, token_count, [&](int64_t token) {
        add_and_normalise(normed + token * width, residual + token * width, weight, decoder_.shape_.epsilon, width);
        decoder_.split(token, normed, token_count, width);
      });
    }

    // Splits what no norm has made ready for the next product.
    void split_all(Phase phase, const T* input, int64_t row_count, int64_t width) {
      if constexpr (kSplitsRows) {
        for_tokens(first_phase_ + phase, row_count, [&](int64_t row) { decoder_.split(row, input, row_count, width); });
      }
    }

    // Copies what belongs to the tokens in `output_tokens`.
    void gather_outputs() {
      Decoder& d = decoder_;
      for_tokens(first_phase_ + kGather, d.shape_.output_count, [&](int64_t index) {
        const int64_t token = d.tensors_.output_tokens[index];
        std::copy_n(d.attended_ + token * d.query_width_, d.query_width_, d.last_attended_ + index * d.query_width_);
        std::copy_n(d.tensors_.residual + token * d.shape_.hidden_size, d.shape_.hidden_size,
                    d.last_residual_ + index * d.shape_.hidden_size);
      });
    }

    // Has body(token) called for each token, and returns when that was done.
    template <typename Body>
    void for_tokens(int64_t phase, int64_t token_count, const Body& body) {
      const int64_t tokens_per_task =
          std::clamp<int64_t>(token_count / (2 * decoder_.team_.thread_count()), 1, kTokensPerTask);
      place_.share_each(phase, (token_count + tokens_per_task - 1) / tokens_per_task, [&](int64_t task) {
        const int64_t begin = task * tokens_per_task;
        for (int64_t token = begin; token < std::min(begin + tokens_per_task, token_count); ++token) body(token);
      });
    }

    Decoder& decoder_;
    const TeamPlace place_;
    AttentionTasks<T> attention_;
    PanelProduct<T> product_;
    int64_t first_phase_ = 0;
  };

  // The rows of the input of a linear layer, as they come to its product.
  Rows rows(const T* input, int64_t row_count, int64_t width) const {
    if constexpr (kSplitsRows) {
      return {parts_, factors_, row_count, round_up(width, kStepDepth<W>)};
    } else {
      return {input, width};
    }
  }

  // Makes a row of the input of a linear layer ready for its product, where it does not come as it is.
  void split(int64_t row, const T* input, int64_t row_count, int64_t width) const {
    if constexpr (kSplitsRows) rows(input, row_count, width).split(row, input + row * width, width);
  }

  // Bytes for the parts of any input.
  int64_t parts_capacity() const {
    if constexpr (kSplitsRows) {
      const int64_t widest = std::max({shape_.hidden_size, query_width_, shape_.inner_size});
      return Rows::capacity(shape_.token_count, round_up(widest, kStepDepth<W>));
    } else {
      return 0;
    }
  }

  int64_t query_key_value_width() const { return query_width_ + 2 * kv_width_; }

  AttentionShape attention_shape() const {
    AttentionShape shape = shape_.attention;
    shape.query_stride = query_key_value_width();
    return shape;
  }

  AttentionTensors<T> attention_tensors(const DecoderLayer<T, W>& layer) const {
    return {query_key_value_,      layer.key_cache,          layer.value_cache, tensors_.block_tables,
            tensors_.query_starts, tensors_.context_lengths, attended_};
  }

  RotaryTensors<T> rotary_tensors(const DecoderLayer<T, W>& layer) const {
    const T* key = query_key_value_ + query_width_;
    return {query_key_value_, key,
            key + kv_width_,  tensors_.positions,
            tensors_.cos_sin, tensors_.slot_ids,
            layer.key_cache,  layer.value_cache,
            query_key_value_};
  }

  RotaryShape rotary_shape() const {
    const AttentionShape& attention = shape_.attention;
    const int64_t stride = query_key_value_width();
    return {shape_.token_count,
            attention.head_count,
            attention.kv_head_count,
            attention.head_size,
            shape_.rotary_size,
            attention.block_size,
            stride,
            stride,
            stride,
            stride};
  }

  LinearTasks<T, W> query_key_value(const DecoderLayer<T, W>& layer, LinearAddend addend) const {
    return tasks(layer.query_key_value, addend, normed_, query_key_value_,
                 {shape_.token_count, shape_.hidden_size, shape_.hidden_size, query_key_value_width(), false});
  }

  LinearTasks<T, W> attention_output(const DecoderLayer<T, W>& layer, const T* attended, int64_t token_count, T* output,
                                     LinearAddend addend) const {
    return tasks(layer.attention_output, addend, attended, output,
                 {token_count, query_width_, query_width_, shape_.hidden_size, false});
  }

  LinearTasks<T, W> gated(const DecoderLayer<T, W>& layer, int64_t token_count, const T* input,
                          LinearAddend addend) const {
    return tasks(layer.gated, addend, input, gated_,
                 {token_count, shape_.hidden_size, shape_.hidden_size, 2 * shape_.inner_size, true});
  }

  LinearTasks<T, W> down(const DecoderLayer<T, W>& layer, int64_t token_count, T* output, LinearAddend addend) const {
    return tasks(layer.down, addend, gated_, output,
                 {token_count, shape_.inner_size, shape_.inner_size, shape_.hidden_size, false});
  }

  LinearTasks<T, W> tasks(const PackedWeight<T, W>& weight, LinearAddend addend, const T* input, T* output,
                          const LinearShape& shape) const {
    return {{input, weight.panels, weight.scales, weight.bias, output, addend.added, addend.rows},
            rows(input, shape.row_count, shape.in_count),
            shape};
  }

  const DecoderTensors<T>& tensors_;
  const std::vector<DecoderLayer<T, W>>& layers_;
  const DecoderShape shape_;
  const int64_t query_width_;
  const int64_t kv_width_;
  const AttentionPlan plan_;
  PartialRows partials_;
  const AdapterProducts<T> adapters_;
  Team team_;
  T* normed_;
  T* query_key_value_;
  T* attended_;
  T* gated_;
  T* last_attended_;
  T* last_residual_;
  // The input of the next product, if its rows are split.
  TileByte* parts_;
  float* factors_;
};

}  // namespace

bool can_decode(const DecoderShape& shape) {
  return shape.hidden_size % kPanelDepth == 0 && shape.inner_size % kPanelDepth == 0 &&
         shape.attention.head_count * shape.attention.head_size % kPanelDepth == 0;
}

template <typename T, typename W>
void decode(const DecoderTensors<T>& tensors, const std::vector<DecoderLayer<T, W>>& layers,
            const DecoderAdapters<T>& adapters, const DecoderShape& shape) {
  Decoder<T, W>(tensors, layers, adapters, shape).run();
}

#define INSTANTIATE(T, W)                                                                      \
  template void decode<T, W>(const DecoderTensors<T>&, const std::vector<DecoderLayer<T, W>>&, \
                             const DecoderAdapters<T>&, const DecoderShape&);
INSTANTIATE(float, float)
INSTANTIATE(float, int8_t)
INSTANTIATE(float, EightBitStep)
INSTANTIATE(float, FourBitStep)
INSTANTIATE(BFloat16, BFloat16)
INSTANTIATE(BFloat16, IntegersFor<BFloat16>::Type)
INSTANTIATE(BFloat16, EightBitStep)
INSTANTIATE(BFloat16, FourBitStep)
INSTANTIATE(BFloat16, TwelveBitStep)
#undef INSTANTIATE

}  // namespace headrace
