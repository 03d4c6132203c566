#include "token_mask.h"

#include <algorithm>

#include "threads.h"
#include "vector.h"

namespace headrace {
namespace {

// Logits that one thread goes through before a second one is worth calling.
constexpr int64_t kLogitsPerThread = 64 * 1024;
constexpr int64_t kWordBits = 32;
constexpr float kNever = -std::numeric_limits<float>::infinity();

Ints lane_bits() {
  Ints bits;
  for (int64_t lane = 0; lane < kLanes; ++lane) bits[lane] = 1 << lane;
  return bits;
}

// One row; returns the largest logit that is left.
template <typename T>
float keep_allowed_of(T* logits, int64_t vocabulary, const int32_t* words) {
  const Ints bits = lane_bits();
  Floats peaks = broadcast(kNever);
  int64_t token_id = 0;
  for (; token_id + kLanes <= vocabulary; token_id += kLanes) {
    const int32_t lanes = words[token_id / kWordBits] >> token_id % kWordBits & 0xffff;
    // Most masks allow long runs of tokens, or none of them: those are read only, or written only.
    if (lanes == 0) {
      store(logits + token_id, broadcast(kNever));
      continue;
    }
    Floats scores = load(logits + token_id);
    if (lanes != 0xffff) {
      scores = ((Ints{} + lanes) & bits) != 0 ? scores : broadcast(kNever);
      store(logits + token_id, scores);
    }
    peaks = maximum(peaks, scores);
  }
  float peak = largest(peaks);
  for (; token_id < vocabulary; ++token_id) {
    if ((words[token_id / kWordBits] >> token_id % kWordBits & 1) == 0) logits[token_id] = narrow<T>(kNever);
    peak = std::max(peak, widen(logits[token_id]));
  }
  return peak;
}

}  // namespace

template <typename T>
void keep_allowed(T* logits, int64_t vocabulary, const TokenMasks& masks, float* peaks) {
  parallel_shares(masks.count, masks.count * vocabulary / kLogitsPerThread + 1, [&](Share share) {
    for (int64_t mask = share.begin; mask < share.end; ++mask)
      peaks[mask] =
          keep_allowed_of(logits + masks.rows[mask] * vocabulary, vocabulary, masks.words + mask * masks.word_count);
  });
}

template void keep_allowed<float>(float*, int64_t, const TokenMasks&, float*);
template void keep_allowed<BFloat16>(BFloat16*, int64_t, const TokenMasks&, float*);

}  // namespace headrace
