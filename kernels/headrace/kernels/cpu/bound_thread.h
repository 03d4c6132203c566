// A thread that is bound to a processor of its own, and may be lent another one for a moment.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace headrace {

// What threads that work together know of one of them. Where the system is not Linux, or the thread is not bound, it
// is never lent anything.
class BoundThread {
 public:
  // Notes which thread this is, the calling one, and where it is bound.
  void enter() {
#if defined(__linux__)
    // One that was lent a processor before it came here keeps it for now, and has been here before.
    int32_t expected = kHome;
    if (!state_.compare_exchange_strong(expected, kMoving)) return;
    thread_id_.store(static_cast<int32_t>(syscall(SYS_gettid)));
    home_.store(bound_processor());
    state_.store(kHome);
#endif
  }

  // The processor that it is bound to; -1 where it is bound to none, or to several.
  int32_t home() const { return home_.load(); }

  // Whether it is on its own processor, and waits for it: another thread is being run there.
  bool is_held_up() const {
    if (home() < 0 || state_.load() != kHome) return false;
    // The processor time of a thread that runs goes on.
    const int64_t used_ns = used();
    for (int64_t look = 0; look < kLookCount; ++look) pause();
    return used_ns >= 0 && used() == used_ns;
  }

  // Lends it a processor, unless it has been lent one.
  void lend(int32_t processor) {
#if defined(__linux__)
    int32_t expected = kHome;
    if (!state_.compare_exchange_strong(expected, kMoving)) return;
    bind(processor);
    state_.store(kLent);
#else
    (void)processor;
#endif
  }

  // Has it go back to its own processor, if it was lent one. To be called by itself, or while it waits for work.
  void go_home() {
#if defined(__linux__)
    int32_t state = state_.load();
    // Who lends is about to finish.
    for (; state == kMoving; state = state_.load()) sched_yield();
    if (state == kHome) return;
    bind(home_.load());
    state_.store(kHome);
#endif
  }

  // To be called again and again where a thread waits for another one that runs.
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

 private:
  enum State : int32_t { kHome, kMoving, kLent };

  // Some microseconds.
  static constexpr int64_t kLookCount = 50;

  // Processor time that it has used, in nanoseconds; -1 where that is not known.
  int64_t used() const {
#if defined(__linux__)
    // As the C library makes it of a thread.
    const auto clock = static_cast<clockid_t>(~static_cast<uint32_t>(thread_id_.load()) << 3 | 6);
    timespec time;
    if (clock_gettime(clock, &time) == 0) return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
#endif
    return -1;
  }

#if defined(__linux__)
  static int32_t bound_processor() {
    cpu_set_t processors;
    if (sched_getaffinity(0, sizeof(processors), &processors) != 0 || CPU_COUNT(&processors) != 1) return -1;
    int32_t processor = 0;
    while (!CPU_ISSET(processor, &processors)) ++processor;
    return processor;
  }

  // What the system refuses leaves the thread where it is.
  void bind(int32_t processor) const {
    cpu_set_t processors;
    CPU_ZERO(&processors);
    CPU_SET(processor, &processors);
    sched_setaffinity(thread_id_.load(), sizeof(processors), &processors);
  }
#endif

  std::atomic<int32_t> thread_id_ = 0;
  std::atomic<int32_t> home_ = -1;
  std::atomic<int32_t> state_ = kHome;
};

}  // namespace headrace
