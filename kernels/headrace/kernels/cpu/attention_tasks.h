// Paged attention as tasks that threads share: a task is some queries of one row, for the heads that share keys.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "attention.h"
#include "attention_block.h"
#include "buffer.h"
#include "panel_product.h"

namespace headrace {

// Query rows that one thread takes at once, so that they share the packing of the keys.
constexpr int64_t kQueryRowsPerTask = 512;

// The query rows of a row and key-value head are (token, head) pairs, the heads of a token next to each other.
struct AttentionTask {
  int64_t row;
  int64_t kv_head;
  int64_t query_begin;
  int64_t query_end;
  int64_t key_begin;
  int64_t key_end;
  // Where the outcome goes, to be merged with others'; -1 when it is complete.
  int64_t partial;
};

// Query rows whose keys were split among tasks: partials [partial, partial + count * query rows).
struct AttentionMerge {
  AttentionTask first;
  int64_t count;
};

struct AttentionPlan {
  std::vector<AttentionTask> tasks;
  std::vector<AttentionMerge> merges;
  int64_t partial_count = 0;
};

// NOTE: few query rows with a long context are split by keys, else one stream would keep one thread per head busy.
// Many query rows are split among themselves; the last come first, since they see the most keys.
inline AttentionPlan plan_attention(const int32_t* query_starts, const int32_t* context_lengths,
                                    const AttentionShape& shape) {
  AttentionPlan plan;
  const int64_t group = shape.head_count / shape.kv_head_count;
  for (int64_t row = 0; row < shape.row_count; ++row) {
    const int64_t query_count = (query_starts[row + 1] - query_starts[row]) * group;
    const int64_t context = context_lengths[row];
    for (int64_t kv_head = 0; kv_head < shape.kv_head_count; ++kv_head) {
      if (query_count <= kRowBlock && context > kKeySpan) {
        const AttentionTask whole = {row, kv_head, 0, query_count, 0, context, plan.partial_count};
        for (int64_t key = 0; key < context; key += kKeySpan) {
          plan.tasks.push_back(
              {row, kv_head, 0, query_count, key, std::min(key + kKeySpan, context), plan.partial_count});
          plan.partial_count += query_count;
        }
        plan.merges.push_back({whole, (context + kKeySpan - 1) / kKeySpan});
        continue;
      }
      const int64_t task_count = (query_count + kQueryRowsPerTask - 1) / kQueryRowsPerTask;
      for (int64_t task = task_count - 1; task >= 0; --task)
        plan.tasks.push_back({row, kv_head, task * kQueryRowsPerTask,
                              std::min((task + 1) * kQueryRowsPerTask, query_count), 0, context, -1});
    }
  }
  return plan;
}

// The tasks of one call of attention, as one thread sees them.
template <typename T>
class AttentionTasks {
 public:
  // The plan is of the tensors' rows and of the shape. It and `partials`, which have room for the plan's, outlive this.
  AttentionTasks(const AttentionPlan& plan, PartialRows& partials, const AttentionShape& shape)
      : plan_(plan),
        partials_(partials),
        shape_(shape),
        group_(shape.head_count / shape.kv_head_count),
        padded_size_(partial_width(shape)) {}

  // The width of partials.
  static int64_t partial_width(const AttentionShape& shape) { return round_up(shape.head_size, kPanelWidth); }

  int64_t count() const { return static_cast<int64_t>(plan_.tasks.size()); }
  int64_t merge_count() const { return static_cast<int64_t>(plan_.merges.size()); }

  // Turns to other tensors with the same rows.
  void set_tensors(const AttentionTensors<T>& tensors) { tensors_ = tensors; }

  // Does the tasks that `part` claims.
  template <typename Part>
  void run(PanelProduct<T>& product, Part& part) {
    int64_t task = part.claim();
    fetch(task);
    Scratch& scratch = scratch_for(shape_.head_size);
    // A thread knows its next task, and has its keys fetched, while it does one.
    while (task < count()) {
      const int64_t task_ahead = part.claim();
      attend(task, task_ahead, product, scratch);
      task = task_ahead;
    }
  }

  // Completes query rows whose keys were split, once all tasks are done.
  void merge_parts(int64_t index) { finish(plan_.merges[index]); }

 private:
  // Asks memory for the first keys and values of a task.
  void fetch(int64_t task) const {
    KeySpan<T>& ahead = scratch_for(shape_.head_size).ahead;
    find_keys(task, 0, ahead);
    ahead.fetch(0, kKeySpan, shape_.head_size);
  }

  // What a thread works with; kept from call to call.
  struct Scratch {
    explicit Scratch(int64_t head_size)
        : block(head_size),
          queries(kQueryRowsPerTask * block.padded_size()),
          totals(kQueryRowsPerTask, block.padded_size()),
          parts(kRowBlock, block.padded_size()) {}

    AttentionBlock<T> block;
    Buffer<T> queries;
    PartialRows totals;
    PartialRows parts;
    KeySpan<T> span;
    KeySpan<T> ahead;
  };

  static Scratch& scratch_for(int64_t head_size) {
    static thread_local std::unique_ptr<Scratch> scratch;
    if (!scratch || scratch->block.head_size() != head_size) scratch = std::make_unique<Scratch>(head_size);
    return *scratch;
  }

  void attend(int64_t task_index, int64_t task_ahead, PanelProduct<T>& product, Scratch& scratch) {
    const AttentionTask& task = plan_.tasks[task_index];
    gather_queries(task, scratch);
    const int64_t query_count = task.query_end - task.query_begin;
    const PartialAttention totals = task.partial < 0 ? scratch.totals.from(0) : partials_.from(task.partial);
    const int64_t key_end = visible_end(task);
    for (int64_t key = task.key_begin; key < key_end; key += kKeySpan) {
      find_keys(task_index, key - task.key_begin, scratch.span);
      const bool is_last = key + kKeySpan >= key_end;
      find_keys(is_last ? task_ahead : task_index, is_last ? 0 : key + kKeySpan - task.key_begin, scratch.ahead);
      scratch.block.load_span(scratch.span, scratch.ahead, query_count);
      for (int64_t query = 0; query < query_count; query += kRowBlock)
        attend_block(task, key, query, totals.from(query, padded_size_), product, scratch);
    }
    if (task.partial >= 0) return;
    for (int64_t query = 0; query < query_count; ++query) write(task, query, totals);
  }

  // Attends up to kRowBlock query rows, the first of which is the task's `query`, to the span of keys that is loaded.
  void attend_block(const AttentionTask& task, int64_t key, int64_t query, const PartialAttention& total,
                    PanelProduct<T>& product, Scratch& scratch) {
    const int64_t row_count = std::min(kRowBlock, task.query_end - task.query_begin - query);
    int64_t visible_counts[kRowBlock];
    for (int64_t row = 0; row < row_count; ++row)
      visible_counts[row] = std::clamp<int64_t>(visible_count(task, task.query_begin + query + row) - key, 0, kKeySpan);
    const bool is_first = key == task.key_begin;
    if (visible_counts[row_count - 1] == 0 && !is_first) return;
    const PartialAttention part = is_first ? total : scratch.parts.from(0);
    scratch.block.attend(product, scratch.queries.data() + query * padded_size_, row_count, visible_counts,
                         shape_.scale, part);
    if (!is_first) merge<T>(part, row_count, padded_size_, total);
  }

  // Keys that a query row sees, from the row's first on.
  int64_t visible_count(const AttentionTask& task, int64_t query) const {
    const int64_t token_count = tensors_.query_starts[task.row + 1] - tensors_.query_starts[task.row];
    return tensors_.context_lengths[task.row] - token_count + query / group_ + 1;
  }

  int64_t token_of(const AttentionTask& task, int64_t query) const {
    return tensors_.query_starts[task.row] + query / group_;
  }

  int64_t head_offset(const AttentionTask& task, int64_t query) const {
    return (task.kv_head * group_ + query % group_) * shape_.head_size;
  }

  void gather_queries(const AttentionTask& task, Scratch& scratch) const {
    for (int64_t query = task.query_begin; query < task.query_end; ++query)
      std::copy_n(tensors_.query + token_of(task, query) * shape_.query_stride + head_offset(task, query),
                  shape_.head_size, scratch.queries.data() + (query - task.query_begin) * padded_size_);
  }

  // Keys from the row's first to the last that a task sees.
  int64_t visible_end(const AttentionTask& task) const {
    return std::min(task.key_end, visible_count(task, task.query_end - 1));
  }

  // Finds the span that starts `offset` keys after a task's first; none when there is no such task.
  void find_keys(int64_t task_index, int64_t offset, KeySpan<T>& span) const {
    span.count = 0;
    span.is_in_runs = shape_.block_size % kLanes == 0;
    if (task_index >= count()) return;
    const AttentionTask& task = plan_.tasks[task_index];
    const int32_t* table = tensors_.block_tables + task.row * shape_.block_table_stride;
    const int64_t end = std::min(task.key_begin + offset + kKeySpan, visible_end(task));
    // Block by block: a division for every key took longer than the products.
    for (int64_t key = task.key_begin + offset; key < end;) {
      const int64_t block = table[key / shape_.block_size];
      const int64_t slot = key % shape_.block_size;
      const int64_t block_end = std::min(end, key - slot + shape_.block_size);
      int64_t place = ((block * shape_.kv_head_count + task.kv_head) * shape_.block_size + slot) * shape_.head_size;
      for (; key < block_end; ++key, ++span.count, place += shape_.head_size) {
        span.keys[span.count] = tensors_.key_cache + place;
        span.values[span.count] = tensors_.value_cache + place;
      }
    }
  }

  void finish(const AttentionMerge& merged) {
    const int64_t query_count = merged.first.query_end;
    PartialRows& totals = scratch_for(shape_.head_size).totals;
    const PartialAttention total = totals.from(0);
    totals.copy(partials_.from(merged.first.partial), query_count);
    for (int64_t part = 1; part < merged.count; ++part)
      merge<T>(partials_.from(merged.first.partial + part * query_count), query_count, padded_size_, total);
    for (int64_t query = 0; query < query_count; ++query) write(merged.first, query, total);
  }

  // Writes the outcome of a task's `query`, which is that of its total.
  void write(const AttentionTask& task, int64_t query, const PartialAttention& total) const {
    const float* values = total.values + query * padded_size_;
    const int64_t row = task.query_begin + query;
    T* target = tensors_.output + token_of(task, row) * shape_.head_count * shape_.head_size + head_offset(task, row);
    const float factor = 1.0f / total.weight_sums[query];
    int64_t element = 0;
    for (; element + kLanes <= shape_.head_size; element += kLanes)
      store(target + element, load(values + element) * factor);
    if (element < shape_.head_size)
      store_first(target + element, load(values + element) * factor, shape_.head_size - element);
  }

  const AttentionPlan& plan_;
  PartialRows& partials_;
  AttentionTensors<T> tensors_{};
  AttentionShape shape_;
  int64_t group_;
  int64_t padded_size_;
};

}  // namespace headrace
