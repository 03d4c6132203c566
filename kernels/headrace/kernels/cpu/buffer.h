// Zeroed memory that starts on a cache line: a tile row that crosses lines is read twice.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace headrace {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : elements_(static_cast<T*>(::operator new(size_of(count), kAlignment))) {
    std::memset(static_cast<void*>(elements_.get()), 0, size_of(count));
  }

  T* data() { return elements_.get(); }
  const T* data() const { return elements_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};

  struct Free {
    void operator()(T* elements) const { ::operator delete(elements, kAlignment); }
  };

  static std::size_t size_of(int64_t count) { return static_cast<std::size_t>(count) * sizeof(T); }

  std::unique_ptr<T, Free> elements_;
};

}  // namespace headrace
