// Drawing tokens, and log-probabilities.
#pragma once

#include <cstdint>

namespace headrace {

// The likeliest token of each row of logits [row, vocabulary], the lowest id among equals, and its logit; NaN when one
// of the row's is.
template <typename T>
void likeliest(const T* logits, int64_t row_count, int64_t vocabulary, int64_t* token_ids, float* peaks);

struct SamplingColumns {
  const float* temperatures;
  const int64_t* top_ks;
  const float* top_ps;
  const int64_t* seeds;
  const int64_t* positions;
};

// One token for each row, as headrace.kernels.dispatch.Kernels.sample says.
template <typename T>
void sample(const T* logits, int64_t row_count, int64_t vocabulary, const SamplingColumns& columns, int64_t* token_ids);

struct LogprobResults {
  float* logprobs;
  int64_t* ranks;
  int64_t* top_token_ids;
  float* top_logprobs;
};

// Log-probabilities of given tokens and of the `top_count` likeliest.
template <typename T>
void logprobs(const T* logits, int64_t row_count, int64_t vocabulary, const int64_t* token_ids, int64_t top_count,
              const LogprobResults& results);

}  // namespace headrace
