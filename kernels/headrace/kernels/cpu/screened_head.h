// The likeliest tokens of a head whose weight is looked at in eight bits first.
//
// At temperature 0 nobody needs the logits, only which is the largest, and at few rows a head takes as long as its
// weight takes to be read. So all outputs are computed with the weight rounded to eight bits, together with how far
// each may be from what the whole weight gives. Only panels that may hold the largest logit are multiplied as they are.
//
// NOTE: the bound holds always, it is no guess. With w the row of the weight and q the rounded one, the outputs differ
// by at most |x| |w - q| (Cauchy and Schwarz), by what rounding x leaves, by what sums round, and by what storing
// rounds. So the tokens are those of all logits, to the last tie. That quantized scores with bounds lead to the exact
// maximum is old in the search for nearest neighbours: the vector approximation file (Weber, Schek and Blott, 1998).
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "panel_product.h"
#include "tile_byte.h"

namespace headrace {

// At most so many rows are looked at together.
constexpr int64_t kScreenedRows = 32;

// Norms of an input between which sums of floats neither overflow nor lose what matters, for rows of a weight of
// smaller norms than the largest. For other inputs all panels are multiplied as they are.
constexpr float kSmallestNorm = 1e-15f;
constexpr float kLargestNorm = 1e15f;

// The rounded weight.
struct Screen {
  const TileByte* panels;
  // [out] factor of each output.
  const float* scales;
  // [out] how far an output may be off for an input of norm 1.
  const float* errors;
  // The largest norm of a rounded row.
  float norm;
};

struct ScreenedHeadShape {
  int64_t row_count;
  int64_t row_stride;  // of the input, in elements
  int64_t in_count;
  int64_t out_count;

  int64_t panel_count() const { return (out_count + kPanelWidth - 1) / kPanelWidth; }
};

// Writes the likeliest token of each row, the lowest among equals, and its logit; NaN when one of the row's is.
// `logits` [row, out] is room to work in.
template <typename W>
void likeliest_of_head(const BFloat16* input, const W* panels, const Screen& screen, const ScreenedHeadShape& shape,
                       BFloat16* logits, int64_t* token_ids, float* peaks);

}  // namespace headrace
