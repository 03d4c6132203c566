// A type for bfloat16 elements.
#pragma once

#include <cstdint>

namespace headrace {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

}  // namespace headrace
