#include "attention.h"

#include "attention_tasks.h"
#include "team.h"
#include "threads.h"

namespace headrace {
namespace {

enum Phase { kAttend, kMerge, kPhaseCount };

}  // namespace

template <typename T>
void paged_attention(const AttentionTensors<T>& tensors, const AttentionShape& shape) {
  const AttentionPlan plan = plan_attention(tensors.query_starts, tensors.context_lengths, shape);
  PartialRows partials(plan.partial_count, AttentionTasks<T>::partial_width(shape));
  const auto task_count = static_cast<int64_t>(plan.tasks.size());
  const int64_t thread_count = std::max<int64_t>(std::min(max_thread_count(), task_count), 1);
  Team team(kPhaseCount, thread_count);
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
  {
    const TeamPlace place(team);
    AttentionTasks<T> tasks(plan, partials, shape);
    tasks.set_tensors(tensors);
    PanelProduct<T> product;
    place.share(kAttend, tasks.count(), [&](TeamPart& part) { tasks.run(product, part); });
    place.share_each(kMerge, tasks.merge_count(), [&](int64_t merge) { tasks.merge_parts(merge); });
  }
}

template void paged_attention<float>(const AttentionTensors<float>&, const AttentionShape&);
template void paged_attention<BFloat16>(const AttentionTensors<BFloat16>&, const AttentionShape&);

}  // namespace headrace
