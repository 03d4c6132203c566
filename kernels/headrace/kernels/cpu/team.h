// Threads that go through the phases of one parallel region together.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "bound_thread.h"

namespace headrace {

// Hands out the tasks of each phase, and lets threads wait until all of them are done.
//
// NOTE: a parallel region for each operator costs some microseconds, and a step of a small model has hundreds of
// them. The cores are shared with other processes, a router for one, so a thread may be held up at any time, for
// milliseconds. That is why tasks are claimed one by one, and why a phase ends when its tasks are done, wherever the
// threads are: the others go on without the one that is held up, which finds nothing left to do in what it missed and
// comes after them. Only for the task that it has in hand do they wait, and so that this is short, one of them lends
// it its own processor meanwhile. Beside a process that took 3 ms of every 30 on one of two cores a step took 0.75 to
// 1.00, in the middle 0.91, of the time that it took with threads that wait for each other.
class Team {
 public:
  // For the next parallel region of the calling thread, of at most so many threads. It outlives the region.
  Team(int64_t phase_count, int64_t thread_count)
      : counters_(phase_count), thread_count_(thread_count), members_(members_of_caller(thread_count)) {
    for (Member& member : members_) member.passed_phase.store(-1, std::memory_order_relaxed);
  }

  // A thread that left the region on a lent processor is still there.
  ~Team() {
    for (int64_t thread = 0; thread < thread_count_; ++thread) members_[thread].thread.go_home();
  }

  int64_t thread_count() const { return thread_count_; }

 private:
  friend class TeamPlace;

  // NOTE: some tens of microseconds, longer than a task of a step of few rows. Who is still missing then may have lost
  // its core. A thread that yielded instead would come back only after the others' whole time slices; one that sleeps
  // is let in when it is woken.
  static constexpr int64_t kSpinCount = 400;

  // On cache lines of their own.
  struct alignas(64) Counter {
    std::atomic<int64_t> next_task = 0;
    std::atomic<int32_t> done_count = 0;
  };

  struct alignas(64) Member {
    BoundThread thread;
    // The last phase in which it has done its tasks.
    std::atomic<int64_t> passed_phase = -1;
  };

  // OpenMP has a pool for each thread that begins a region, so these are the same threads from region to region.
  static std::vector<Member>& members_of_caller(int64_t thread_count) {
    static thread_local std::vector<Member> members;
    if (static_cast<int64_t>(members.size()) < thread_count) members = std::vector<Member>(thread_count);
    return members;
  }

  void enter(int64_t thread) { members_[thread].thread.enter(); }

  // The first thread waits until all have left, or else it would wait at the region's end, where nobody lends anything.
  void leave(int64_t thread, int64_t thread_count) {
    const auto end = static_cast<int64_t>(counters_.size());
    members_[thread].passed_phase.store(end, std::memory_order_release);
    if (thread == 0) {
      wait_for(left_count_, static_cast<int32_t>(thread_count - 1), end, thread);
    } else {
      left_count_.fetch_add(1, std::memory_order_seq_cst);
      left_count_.notify_all();
    }
  }

  // Returns when all tasks of a phase are done. The thread has done those that it claimed.
  void finish(int64_t thread, int64_t phase, int32_t claimed_count, int64_t task_count) {
    if (task_count == 0) return;
    std::atomic<int32_t>& done_count = counters_[phase].done_count;
    members_[thread].passed_phase.store(phase, std::memory_order_release);
    // NOTE: a notification is left out where nobody is counted as asleep. Were the count read before this store is
    // seen, a thread that falls asleep in between would never be woken; so the order is that of the program.
    if (claimed_count > 0 &&
        done_count.fetch_add(claimed_count, std::memory_order_seq_cst) + claimed_count == task_count)
      done_count.notify_all();
    // The lender's processor was for these tasks.
    members_[thread].thread.go_home();
    wait_for(done_count, static_cast<int32_t>(task_count), phase, thread);
  }

  void wait_for(std::atomic<int32_t>& count, int32_t wanted, int64_t phase, int64_t thread) {
    for (int64_t spin = 0; spin < kSpinCount; ++spin) {
      if (count.load(std::memory_order_acquire) == wanted) return;
      BoundThread::pause();
    }
    help(phase, thread);
    for (int32_t seen = count.load(std::memory_order_acquire); seen != wanted;
         seen = count.load(std::memory_order_acquire))
      count.wait(seen, std::memory_order_acquire);
  }

  // Lends the caller's processor, which is about to be free, to those who have tasks of a phase and cannot go on.
  void help(int64_t phase, int64_t thread) {
    const int32_t processor = members_[thread].thread.home();
    if (processor < 0) return;
    for (int64_t other = 0; other < thread_count_; ++other) {
      Member& member = members_[other];
      const bool is_behind = other != thread && member.passed_phase.load(std::memory_order_acquire) < phase;
      if (is_behind && member.thread.is_held_up()) member.thread.lend(processor);
    }
  }

  std::vector<Counter> counters_;
  const int64_t thread_count_;
  std::vector<Member>& members_;
  alignas(64) std::atomic<int32_t> left_count_ = 0;
};

// What one thread does of a phase.
class TeamPart {
 public:
  TeamPart(std::atomic<int64_t>& next_task, int64_t task_count) : next_task_(next_task), task_count_(task_count) {}

  // Returns the index of the phase's next task, which the thread then has to do. It may lie behind the last one.
  int64_t claim() {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    claimed_count_ += task < task_count_;
    return task;
  }

  int32_t claimed_count() const { return claimed_count_; }

 private:
  std::atomic<int64_t>& next_task_;
  const int64_t task_count_;
  int32_t claimed_count_ = 0;
};

// The calling thread of a parallel region as one of a team, while this lives.
class TeamPlace {
 public:
  explicit TeamPlace(Team& team) : team_(team), thread_(omp_get_thread_num()) { team_.enter(thread_); }
  TeamPlace(const TeamPlace&) = delete;
  TeamPlace& operator=(const TeamPlace&) = delete;
  ~TeamPlace() { team_.leave(thread_, omp_get_num_threads()); }

  // The thread's number in the team.
  int64_t thread() const { return thread_; }

  // Has body(part) do tasks of a phase, and returns when all `task_count` of them are done. All threads go through the
  // phases in the same order. What they do in between must be for themselves alone: the others do not wait for it.
  template <typename Body>
  void share(int64_t phase, int64_t task_count, const Body& body) const {
    TeamPart part(team_.counters_[phase].next_task, task_count);
    body(part);
    team_.finish(thread_, phase, part.claimed_count(), task_count);
  }

  // Has body(task) called for each task of a phase.
  template <typename Body>
  void share_each(int64_t phase, int64_t task_count, const Body& body) const {
    share(phase, task_count, [&](TeamPart& part) {
      for (int64_t task = part.claim(); task < task_count; task = part.claim()) body(task);
    });
  }

 private:
  Team& team_;
  const int64_t thread_;
};

}  // namespace headrace
