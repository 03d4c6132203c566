// Tensors in the memory of packed weights.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <memory>

#include "weight_memory.h"

namespace headrace::operators {

// Returns a zeroed one, [element].
inline at::Tensor allocate_panels(int64_t element_count, const at::TensorOptions& options) {
  std::shared_ptr<void> memory = WeightMemory::allocate(element_count * options.dtype().itemsize());
  return at::from_blob(memory.get(), {element_count}, [memory](void*) {}, options);
}

}  // namespace headrace::operators
