// Threads that go through the phases of one parallel region together.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {

// Hands out the tasks of each phase, and lets threads wait for each other between phases.
// NOTE: a parallel region for each operator costs some microseconds, and a step of a small model has hundreds of
// them. Tasks are claimed one by one because the cores are shared with other processes: a thread that is held up
// keeps the others waiting for its task at hand, not for its share of a phase.
class Team {
 public:
  explicit Team(int64_t phase_count) : counters_(phase_count) {}

  // Sets how many threads there are, before any of them waits.
  void resize(int64_t thread_count) { thread_count_ = thread_count; }

  int64_t thread_count() const { return thread_count_; }

  // Returns the index of a phase's next task. It may lie behind the last one.
  int64_t claim(int64_t phase) { return counters_[phase].next.fetch_add(1, std::memory_order_relaxed); }

  // Returns when every thread has called this as often.
  void wait() {
    const int32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_count_.fetch_add(1, std::memory_order_acq_rel) + 1 == thread_count_) {
      arrived_count_.store(0, std::memory_order_relaxed);
      // NOTE: a notification is left out where nobody is counted as asleep. Were the count read before this store is
      // seen, a thread that falls asleep in between would never be woken; so the order is that of the program.
      generation_.store(generation + 1, std::memory_order_seq_cst);
      generation_.notify_all();
      return;
    }
    for (int64_t spin = 0; spin < kSpinCount; ++spin) {
      if (generation_.load(std::memory_order_acquire) != generation) return;
      pause();
    }
    generation_.wait(generation, std::memory_order_acquire);
  }

 private:
  // NOTE: some tens of microseconds, longer than a task. Who is still missing then has lost its core to another
  // process, which this core may serve meanwhile. A thread that yielded instead would come back only after the others'
  // whole time slices; one that sleeps is let in when it is woken.
  static constexpr int64_t kSpinCount = 400;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  // On cache lines of their own.
  struct alignas(64) Counter {
    std::atomic<int64_t> next = 0;
  };

  std::vector<Counter> counters_;
  int64_t thread_count_ = 1;
  alignas(64) std::atomic<int64_t> arrived_count_ = 0;
  alignas(64) std::atomic<int32_t> generation_ = 0;
};

}  // namespace headrace
