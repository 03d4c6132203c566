// A type for the eight-bit integers of panels and rows that tiles of AMX multiply.
#pragma once

#include <cstdint>

namespace headrace {

struct TileByte {
  int8_t value;
};

// Sums of so many products of two bytes fit into 32 bits.
constexpr int64_t kTileByteDepth = 131072;

}  // namespace headrace
