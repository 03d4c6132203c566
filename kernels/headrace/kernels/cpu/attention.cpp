#include "attention.h"

#include "attention_tasks.h"
#include "team.h"
#include "threads.h"

namespace headrace {

template <typename T>
void paged_attention(const AttentionTensors<T>& tensors, const AttentionShape& shape) {
  const AttentionPlan plan = plan_attention(tensors.query_starts, tensors.context_lengths, shape);
  AttentionTasks<T> tasks(plan, shape);
  tasks.set_tensors(tensors);
  Team team(1);
  const int64_t thread_count = std::max<int64_t>(std::min(max_thread_count(), tasks.count()), 1);
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
  {
    PanelProduct<T> product;
    const auto claim = [&] { return team.claim(0); };
    const int64_t first_task = claim();
    tasks.fetch(first_task);
    tasks.run(first_task, product, claim);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t merge = 0; merge < tasks.merge_count(); ++merge) tasks.merge_parts(merge);
  }
}

template void paged_attention<float>(const AttentionTensors<float>&, const AttentionShape&);
template void paged_attention<BFloat16>(const AttentionTensors<BFloat16>&, const AttentionShape&);

}  // namespace headrace
