// Loops over the threads that torch was told to use.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace headrace {

// Half-open part of [0, task_count) that a thread does.
struct Share {
  int64_t begin;
  int64_t end;
};

inline int64_t max_thread_count() { return omp_get_max_threads(); }

// Calls body(share) on each of several threads; on the calling one alone when there is little to do.
// NOTE: torch sets OpenMP's thread count, and its own operators run in the same pool; a pool of ours beside it would
// fight it for the cores.
template <typename Body>
void parallel_shares(int64_t task_count, int64_t thread_count, const Body& body) {
  const int64_t most = std::min({task_count, thread_count, max_thread_count()});
  if (most <= 1) {
    body(Share{0, task_count});
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(most))
  {
    // NOTE: OpenMP may give fewer threads than it was asked for.
    const int64_t thread = omp_get_thread_num();
    const int64_t count = omp_get_num_threads();
    body(Share{task_count * thread / count, task_count * (thread + 1) / count});
  }
}

}  // namespace headrace
