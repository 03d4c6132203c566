// The tile registers of AMX: 16 rows of 64 bytes each, multiplied as bfloat16 and summed in float32, or as bytes and
// summed in 32 bits.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "tile_byte.h"
#include "vector.h"

namespace headrace {

// The rows of each tile and their bytes, as the processor reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t row_counts[16] = {};

  void set(std::initializer_list<int> tiles, int64_t row_count, int64_t byte_count) {
    for (const int tile : tiles) {
      row_counts[tile] = static_cast<uint8_t>(row_count);
      row_bytes[tile] = static_cast<uint16_t>(byte_count);
    }
  }

  void load() const {
    // NOTE: GCC takes it that the instruction reads the first word only, and may leave out what fills the others.
    __asm__ volatile("" : : "m"(*this));
    _tile_loadconfig(this);
  }
};

// Tiles 0 and 1 hold the sums of rows [0, 16), 2 and 3 those of rows [16, 32); 4 and 5 the rows; 6 and 7 the panel.
inline void configure_tiles(int64_t row_count) {
  const int64_t first = std::min<int64_t>(row_count, 16);
  const int64_t second = std::max<int64_t>(row_count - 16, 1);
  TileShapes shapes;
  shapes.set({0, 1, 4}, first, 64);
  shapes.set({2, 3, 5}, second, 64);
  shapes.set({6, 7}, 16, 64);
  shapes.load();
}

inline void release_tiles() { _tile_release(); }

// What sums of products of elements of a type are; two tiles of AMX multiply in one instruction.
template <typename E>
struct TileProducts;

// Each adds the products of 16 rows, in tile 4 or 5, and of half a panel, in tile 6 or 7.
template <>
struct TileProducts<BFloat16> {
  typedef float Sum;
  static void add_first_low() { _tile_dpbf16ps(0, 4, 6); }
  static void add_first_high() { _tile_dpbf16ps(1, 4, 7); }
  static void add_second_low() { _tile_dpbf16ps(2, 5, 6); }
  static void add_second_high() { _tile_dpbf16ps(3, 5, 7); }
};

template <>
struct TileProducts<TileByte> {
  typedef int32_t Sum;
  static void add_first_low() { _tile_dpbssd(0, 4, 6); }
  static void add_first_high() { _tile_dpbssd(1, 4, 7); }
  static void add_second_low() { _tile_dpbssd(2, 5, 6); }
  static void add_second_high() { _tile_dpbssd(3, 5, 7); }
};

// See PanelProduct::multiply; kTileRows is 1 for up to 16 rows and 2 for up to 32. The panel's step for depth `in` lies
// where that of `in & depth_mask` would.
// NOTE: rows that pass by, one block after another, are loaded without a place in the first-level cache. There they
// would push out the panel, which all of them are multiplied by: then both came from the second level, and a prompt's
// products took half as long again.
template <int kTileRows, bool kPassesBy, typename E, typename Meanwhile>
inline void multiply_tiles(const E* rows, int64_t row_stride, const E* panel, int64_t depth_mask, int64_t depth,
                           const E* ahead, int64_t fetch_ahead, typename TileProducts<E>::Sum* product,
                           int64_t product_stride, const Meanwhile& meanwhile) {
  // Of 64 bytes, which a row of a tile has.
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(E));
  constexpr int64_t kLinesPerStep = 32;
  const int64_t row_bytes = row_stride * static_cast<int64_t>(sizeof(E));
  const int64_t panel_size = depth * kLinesPerStep;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTileRows == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t in = 0; in < depth; in += kLine) {
    const E* tiles = panel + (in & depth_mask) * kLinesPerStep;
    if (ahead != nullptr) {
      const int64_t place = in * kLinesPerStep + fetch_ahead;
      const E* lines = place < panel_size ? panel + place : ahead + place - panel_size;
      for (int64_t line = 0; line < kLinesPerStep; ++line)
        _mm_prefetch(reinterpret_cast<const char*>(lines + line * kLine), _MM_HINT_T0);
    }
    if constexpr (kPassesBy) {
      _tile_stream_loadd(4, rows + in, row_bytes);
    } else {
      _tile_loadd(4, rows + in, row_bytes);
    }
    _tile_loadd(6, tiles, 64);
    TileProducts<E>::add_first_low();
    _tile_loadd(7, tiles + 16 * kLine, 64);
    TileProducts<E>::add_first_high();
    if constexpr (kTileRows == 2) {
      if constexpr (kPassesBy) {
        _tile_stream_loadd(5, rows + 16 * row_stride + in, row_bytes);
      } else {
        _tile_loadd(5, rows + 16 * row_stride + in, row_bytes);
      }
      TileProducts<E>::add_second_low();
      TileProducts<E>::add_second_high();
    }
    meanwhile();
  }
  const int64_t product_bytes = product_stride * static_cast<int64_t>(sizeof(*product));
  _tile_stored(0, product, product_bytes);
  _tile_stored(1, product + 16, product_bytes);
  if constexpr (kTileRows == 2) {
    _tile_stored(2, product + 16 * product_stride, product_bytes);
    _tile_stored(3, product + 16 * product_stride + 16, product_bytes);
  }
}

}  // namespace headrace
