// Memory for what an operator keeps while it runs, the same from call to call.
#pragma once

#include <cstdint>

#include "weight_memory.h"

namespace headrace {

// Hands out pieces of one piece of memory; each call of an operator starts anew.
// NOTE: memory that is asked of the system for each call comes without pages, and a large step spent a third of its
// time on getting them.
class Workspace {
 public:
  static constexpr int64_t kLine = 64;

  static Workspace& of_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

  // Makes room for `size` bytes; every earlier piece is void.
  void start(int64_t size) {
    used_ = 0;
    if (size <= size_) return;
    memory_.reset();
    memory_ = map_huge_pages(size);
    size_ = size;
  }

  // Returns a piece that starts on a cache line. It holds anything at all.
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    return piece;
  }

 private:
  std::shared_ptr<char> memory_;
  int64_t size_ = 0;
  int64_t used_ = 0;
};

}  // namespace headrace
