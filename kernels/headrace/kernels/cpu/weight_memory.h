// Memory for packed weights, in huge pages where the system grants them.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

namespace headrace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Returns zeroed memory that starts on a huge page.
inline std::shared_ptr<char> map_huge_pages(std::size_t size) {
  const std::size_t whole = (size + kHugePage - 1) / kHugePage * kHugePage;
  const std::size_t mapped = whole + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  char* aligned = reinterpret_cast<char*>((address + kHugePage - 1) / kHugePage * kHugePage);
#if defined(MADV_HUGEPAGE)
  madvise(aligned, whole, MADV_HUGEPAGE);
#endif
  return {aligned, [base, mapped](char*) { munmap(base, mapped); }};
}

// Hands out zeroed pieces of large chunks; a chunk is freed when its last piece is.
// NOTE: a step reads every weight once. With pages of 4 KiB the processor stops fetching ahead at every page, which
// cost a quarter of the bandwidth; and most weights are too small to fill a huge page of their own.
class WeightMemory {
 public:
  static std::shared_ptr<void> allocate(std::size_t size) {
    static WeightMemory memory;
    return memory.allocate_piece((size + kLine - 1) / kLine * kLine);
  }

 private:
  static constexpr std::size_t kLine = 64;
  static constexpr std::size_t kChunk = std::size_t{64} << 20;

  std::shared_ptr<void> allocate_piece(std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::shared_ptr<char> last = chunk_.lock();
    if (!last || used_ + size > size_) {
      size_ = std::max(size, kChunk);
      const std::shared_ptr<char> chunk = map_huge_pages(size_);
      chunk_ = chunk;
      used_ = size;
      return {chunk, chunk.get()};
    }
    char* piece = last.get() + used_;
    used_ += size;
    return {last, piece};
  }

  std::mutex mutex_;
  std::weak_ptr<char> chunk_;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
};

}  // namespace headrace
