// Taking the tokens out of a draw that a mask does not allow.
#pragma once

#include <cstdint>

namespace headrace {

struct TokenMasks {
  // [mask] the row of each, all different.
  const int64_t* rows;
  // [mask, word] a bit for each token, the lowest first, set where the token is allowed.
  const int32_t* words;
  int64_t count;
  int64_t word_count;
};

// Writes -infinity into logits [row, vocabulary] where a mask does not allow the token, and the largest logit that is
// left to each masked row, -infinity if none is, to peaks [mask]. No logit is NaN.
template <typename T>
void keep_allowed(T* logits, int64_t vocabulary, const TokenMasks& masks, float* peaks);

}  // namespace headrace
