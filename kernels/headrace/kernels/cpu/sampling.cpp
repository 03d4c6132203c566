#include "sampling.h"

#include <algorithm>
#include <array>
#include <vector>

#include "threads.h"
#include "vector.h"

namespace headrace {
namespace {

// Logits that one thread goes through before a second one is worth calling.
constexpr int64_t kLogitsPerThread = 16 * 1024;
constexpr int64_t kChains = 4;
constexpr float kNever = -std::numeric_limits<float>::infinity();

typedef float HalfFloats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
constexpr int64_t kWideLanes = 8;

Doubles load_wide(const float* source) {
  HalfFloats values;
  std::memcpy(&values, source, sizeof(values));
  return __builtin_convertvector(values, Doubles);
}

// What tokens are measured by until enough of them are kept: by their number, or by their weights.
struct Ones {
  float operator()(float) const { return 1.0f; }
  Floats operator()(Floats) const { return broadcast(1.0f); }
};

struct Weights {
  float operator()(float weight) const { return weight; }
  Floats operator()(Floats weights) const { return weights; }
};

struct Candidate {
  float score;
  int64_t token_id;
};

bool is_likelier(const Candidate& left, const Candidate& right) {
  return left.score > right.score || (left.score == right.score && left.token_id < right.token_id);
}

template <typename T>
Candidate likeliest_of(const T* logits, int64_t begin, int64_t end) {
  // NOTE: a comparison has to wait for the one before it, so several go on beside one another.
  Floats best[kChains];
  Ints best_ids[kChains] = {};
  Ints is_broken = {};
  for (Floats& scores : best) scores = broadcast(kNever);
  Ints ids = Ints{} + static_cast<int32_t>(begin);
  int64_t token_id = begin;
  for (; token_id + kChains * kLanes <= end;
       token_id += kChains * kLanes, ids += static_cast<int32_t>(kChains * kLanes))
    for (int64_t chain = 0; chain < kChains; ++chain) {
      const Floats scores = load(logits + token_id + chain * kLanes);
      const Ints is_better = scores > best[chain];
      best[chain] = is_better ? scores : best[chain];
      best_ids[chain] = is_better ? ids : best_ids[chain];
      is_broken |= scores != scores;
    }
  Candidate found = {kNever, end};
  for (int64_t chain = 0; chain < kChains; ++chain)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const Candidate candidate = {best[chain][lane], best_ids[chain][lane] + chain * kLanes + lane};
      if (candidate.score > kNever && is_likelier(candidate, found)) found = candidate;
    }
  for (; token_id < end; ++token_id) {
    const Candidate candidate = {widen(logits[token_id]), token_id};
    if (is_likelier(candidate, found)) found = candidate;
    is_broken[0] |= candidate.score != candidate.score;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane)
    if (is_broken[lane]) found = {std::numeric_limits<float>::quiet_NaN(), begin};
  // Nothing is more than -infinity: any token is as likely as the others.
  if (found.token_id == end) found.token_id = begin;
  return found;
}

// The likelier of two, or the one that is no number.
Candidate likelier_of(const Candidate& left, const Candidate& right) {
  if (left.score != left.score) return left;
  return right.score != right.score || is_likelier(right, left) ? right : left;
}

// One of four words of Philox4x32-10 each, as headrace.kernels.philox explains.
double uniform(uint64_t seed, uint64_t position) {
  uint32_t words[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t keys[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = static_cast<uint64_t>(words[0]) * 0xD2511F53u;
    const uint64_t second = static_cast<uint64_t>(words[2]) * 0xCD9E8D57u;
    words[0] = static_cast<uint32_t>(second >> 32) ^ words[1] ^ keys[0];
    words[1] = static_cast<uint32_t>(second);
    words[2] = static_cast<uint32_t>(first >> 32) ^ words[3] ^ keys[1];
    words[3] = static_cast<uint32_t>(first);
    keys[0] += 0x9E3779B9u;
    keys[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(words[0]) << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// The tokens of one row after the other: their weights, by which one is drawn.
// NOTE: a running sum over a vocabulary waits for each addition before the next one, and took longer than all else
// here. So blocks of tokens are summed first, in vectors, and only the block that holds the drawn token is gone
// through.
template <typename T>
class Distribution {
 public:
  explicit Distribution(int64_t vocabulary)
      : vocabulary_(vocabulary),
        weights_(vocabulary),
        peaks_((vocabulary + kBlock - 1) / kBlock),
        sums_(peaks_.size()) {}

  // Takes the next row.
  void fill(const T* logits, float temperature) {
    logits_ = logits;
    for (std::size_t block = 0; block < peaks_.size(); ++block)
      peaks_[block] = peak_of(logits_, {begin(block), end(block)});
    const float peak = *std::max_element(peaks_.begin(), peaks_.end());
    for (std::size_t block = 0; block < peaks_.size(); ++block) {
      if (peaks_[block] == kNever) {
        // A grammar bars most of the tokens, block after block.
        std::fill(&weights_[begin(block)], weights_.data() + end(block), 0.0f);
        continue;
      }
      // Shifted before it is divided, so that no temperature makes an infinity.
      int64_t token_id = begin(block);
      for (; token_id + kLanes <= end(block); token_id += kLanes)
        store(&weights_[token_id], exponential((load(logits + token_id) - peak) / temperature));
      for (; token_id < end(block); ++token_id)
        weights_[token_id] = exponential((widen(logits[token_id]) - peak) / temperature);
    }
  }

  void keep_top_k(int64_t count) {
    if (count <= 0 || count >= vocabulary_) return;
    scores_.resize(vocabulary_);
    for (int64_t token_id = 0; token_id < vocabulary_; ++token_id) scores_[token_id] = widen(logits_[token_id]);
    const float peak = *std::max_element(peaks_.begin(), peaks_.end());
    keep_likeliest(scores_, static_cast<double>(count),
                   {peak - 1.0f, peak - 2.0f, peak - 4.0f, peak - 6.0f, peak - 9.0f, peak - 13.0f}, Ones{});
  }

  void keep_top_p(float share) {
    if (share >= 1.0f) return;
    // Of the likeliest token the weight is 1.
    keep_likeliest(weights_, sum_blocks() * static_cast<double>(share),
                   {0x1p-4f, 0x1p-7f, 0x1p-10f, 0x1p-13f, 0x1p-16f, 0x1p-20f}, Weights{});
  }

  int64_t draw(double number) {
    const double total = sum_blocks();
    // Rounding must not lift the target to the total, past the last token that has any weight.
    const double target = std::min(number * total, std::nextafter(total, 0.0));
    double cumulated = 0.0;
    std::size_t block = 0;
    while (block + 1 < sums_.size() && cumulated + sums_[block] <= target) cumulated += sums_[block++];
    int64_t drawn = begin(block);
    for (int64_t token_id = begin(block); token_id < end(block); ++token_id) {
      if (!(weights_[token_id] > 0.0f)) continue;
      // One by one they may add up to a rounding less than the block's sum: then it is the last of them.
      drawn = token_id;
      cumulated += weights_[token_id];
      if (cumulated > target) break;
    }
    return drawn;
  }

 private:
  using Levels = std::array<float, 6>;

  // Tokens that are summed together.
  static constexpr int64_t kBlock = 512;
  // Tokens that are looked at one by one, or not at all.
  static constexpr int64_t kRun = 64;

  int64_t begin(std::size_t block) const { return static_cast<int64_t>(block) * kBlock; }
  int64_t end(std::size_t block) const { return std::min(begin(block) + kBlock, vocabulary_); }

  template <typename Value>
  static float peak_of(const Value* values, Share share) {
    Floats peaks = broadcast(kNever);
    int64_t token_id = share.begin;
    for (; token_id + kLanes <= share.end; token_id += kLanes) peaks = maximum(peaks, load(values + token_id));
    float peak = largest(peaks);
    for (; token_id < share.end; ++token_id) peak = std::max(peak, widen(values[token_id]));
    return peak;
  }

  // Sums each block of weights, and returns the total.
  double sum_blocks() {
    double total = 0.0;
    for (std::size_t block = 0; block < sums_.size(); ++block) {
      sums_[block] = peaks_[block] == kNever ? 0.0 : sum_of(begin(block), end(block));
      total += sums_[block];
    }
    return total;
  }

  double sum_of(int64_t token_id, int64_t end) const {
    Doubles sums = {};
    for (; token_id + kWideLanes <= end; token_id += kWideLanes) sums += load_wide(&weights_[token_id]);
    double total = 0.0;
    for (int64_t lane = 0; lane < kWideLanes; ++lane) total += sums[lane];
    for (; token_id < end; ++token_id) total += weights_[token_id];
    return total;
  }

  // Keeps the likeliest tokens by `values`, until what they measure reaches `wanted`, and zeroes other weights.
  // NOTE: tokens are counted by the leading bits of their values, so only those on the border need an order. Sorting
  // all of a vocabulary took longer than a step of the model.
  template <typename Measure>
  void keep_likeliest(const std::vector<float>& values, double wanted, const Levels& levels, const Measure& measure) {
    collect(values, level_for(values, wanted, levels, measure));
    std::vector<double> buckets(kBucketCount, 0.0);
    for (const Candidate& candidate : candidates_) buckets[bucket_of(candidate.score)] += measure(candidate.score);
    double reached = 0.0;
    int64_t border = kBucketCount - 1;
    while (border > 0 && reached + buckets[border] < wanted) reached += buckets[border--];
    std::size_t count = 0;
    for (const Candidate& candidate : candidates_) {
      const int64_t bucket = bucket_of(candidate.score);
      if (bucket < border) weights_[candidate.token_id] = 0.0f;
      if (bucket == border) candidates_[count++] = candidate;
    }
    candidates_.resize(count);
    std::sort(candidates_.begin(), candidates_.end(), is_likelier);
    for (const Candidate& candidate : candidates_) {
      if (reached >= wanted) weights_[candidate.token_id] = 0.0f;
      reached += measure(candidate.score);
    }
  }

  // Returns the first of descending levels above which the values certainly reach what is wanted; else one below all.
  // NOTE: a few hundred tokens mostly do, and to count each of a vocabulary took longer than all else of a draw.
  template <typename Measure>
  float level_for(const std::vector<float>& values, double wanted, const Levels& levels, const Measure& measure) const {
    std::array<double, std::tuple_size_v<Levels>> reached = {};
    for (std::size_t block = 0; block < peaks_.size(); ++block) {
      std::array<Floats, std::tuple_size_v<Levels>> sums = {};
      for (int64_t token_id = begin(block); token_id + kLanes <= end(block); token_id += kLanes) {
        const Floats lanes = load(&values[token_id]);
        const Floats measured = measure(lanes);
        for (std::size_t level = 0; level < levels.size(); ++level)
          sums[level] += lanes >= levels[level] ? measured : Floats{};
      }
      for (std::size_t level = 0; level < levels.size(); ++level) reached[level] += sum(sums[level]);
    }
    for (std::size_t level = 0; level < levels.size(); ++level)
      // By far more than what rounding makes of a sum.
      if (reached[level] > wanted * 1.0001) return levels[level];
    return kNever;
  }

  // Makes candidates of the tokens that are at a level or above, and zeroes the weights of the others.
  void collect(const std::vector<float>& values, float level) {
    candidates_.clear();
    for (int64_t run = 0; run < vocabulary_; run += kRun) {
      const Share share = {run, std::min(run + kRun, vocabulary_)};
      if (peak_of(values.data(), share) < level) {
        std::fill(weights_.data() + share.begin, weights_.data() + share.end, 0.0f);
        continue;
      }
      for (int64_t token_id = share.begin; token_id < share.end; ++token_id) {
        if (values[token_id] >= level)
          candidates_.push_back({values[token_id], token_id});
        else
          weights_[token_id] = 0.0f;
      }
    }
  }

  static constexpr int64_t kBucketCount = 4096;

  // Orders as the values do, by sign, exponent and the first bits of the fraction.
  static int64_t bucket_of(float value) {
    // Minus zero equals zero.
    value += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<int64_t>((bits & 0x80000000u ? ~bits : bits | 0x80000000u) >> 20);
  }

  int64_t vocabulary_;
  const T* logits_ = nullptr;
  // Of the tokens' logits, filled for top-k alone.
  std::vector<float> scores_;
  std::vector<float> weights_;
  // Of each block, the largest logit and the sum of the weights.
  std::vector<float> peaks_;
  std::vector<double> sums_;
  std::vector<Candidate> candidates_;
};

template <typename T>
float log_sum(const T* logits, int64_t vocabulary, float peak) {
  double total = 0.0;
  int64_t token_id = 0;
  for (; token_id + kLanes <= vocabulary; token_id += kLanes) total += sum(exponential(load(logits + token_id) - peak));
  for (; token_id < vocabulary; ++token_id) total += exponential(widen(logits[token_id]) - peak);
  return peak + static_cast<float>(std::log(total));
}

}  // namespace

template <typename T>
void likeliest(const T* logits, int64_t row_count, int64_t vocabulary, int64_t* token_ids, float* peaks) {
  if (row_count == 0) return;
  // A few rows are cut into parts, so that each thread has some.
  const int64_t part_count =
      std::clamp<int64_t>(vocabulary / kLogitsPerThread, 1, (max_thread_count() + row_count - 1) / row_count);
  std::vector<Candidate> found(row_count * part_count);
  const int64_t thread_count = row_count * vocabulary / kLogitsPerThread;
  parallel_shares(row_count * part_count, thread_count, [&](Share share) {
    for (int64_t task = share.begin; task < share.end; ++task) {
      const int64_t part = task % part_count;
      found[task] = likeliest_of(logits + task / part_count * vocabulary, vocabulary * part / part_count,
                                 vocabulary * (part + 1) / part_count);
    }
  });
  for (int64_t row = 0; row < row_count; ++row) {
    Candidate best = found[row * part_count];
    for (int64_t part = 1; part < part_count; ++part) best = likelier_of(best, found[row * part_count + part]);
    token_ids[row] = best.token_id;
    peaks[row] = best.score;
  }
}

template <typename T>
void sample(const T* logits, int64_t row_count, int64_t vocabulary, const SamplingColumns& columns,
            int64_t* token_ids) {
  parallel_shares(row_count, max_thread_count(), [&](Share share) {
    Distribution<T> distribution(vocabulary);
    for (int64_t row = share.begin; row < share.end; ++row) {
      if (!(columns.temperatures[row] > 0.0f)) {
        token_ids[row] = likeliest_of(logits + row * vocabulary, 0, vocabulary).token_id;
        continue;
      }
      distribution.fill(logits + row * vocabulary, columns.temperatures[row]);
      distribution.keep_top_k(columns.top_ks[row]);
      distribution.keep_top_p(columns.top_ps[row]);
      token_ids[row] = distribution.draw(
          uniform(static_cast<uint64_t>(columns.seeds[row]), static_cast<uint64_t>(columns.positions[row])));
    }
  });
}

template <typename T>
void logprobs(const T* logits, int64_t row_count, int64_t vocabulary, const int64_t* token_ids, int64_t top_count,
              const LogprobResults& results) {
  parallel_shares(row_count, max_thread_count(), [&](Share share) {
    std::vector<Candidate> candidates(top_count > 0 ? vocabulary : 0);
    for (int64_t row = share.begin; row < share.end; ++row) {
      const T* scores = logits + row * vocabulary;
      const float normaliser = log_sum(scores, vocabulary, likeliest_of(scores, 0, vocabulary).score);
      const float chosen = widen(scores[token_ids[row]]);
      results.logprobs[row] = chosen - normaliser;
      results.ranks[row] =
          1 + std::count_if(scores, scores + vocabulary, [&](T score) { return widen(score) > chosen; });
      if (top_count == 0) continue;
      for (int64_t token_id = 0; token_id < vocabulary; ++token_id)
        candidates[token_id] = {widen(scores[token_id]), token_id};
      std::partial_sort(candidates.begin(), candidates.begin() + top_count, candidates.end(), is_likelier);
      for (int64_t place = 0; place < top_count; ++place) {
        results.top_token_ids[row * top_count + place] = candidates[place].token_id;
        results.top_logprobs[row * top_count + place] = candidates[place].score - normaliser;
      }
    }
  });
}

#define INSTANTIATE(T)                                                                   \
  template void likeliest<T>(const T*, int64_t, int64_t, int64_t*, float*);              \
  template void sample<T>(const T*, int64_t, int64_t, const SamplingColumns&, int64_t*); \
  template void logprobs<T>(const T*, int64_t, int64_t, const int64_t*, int64_t, const LogprobResults&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace headrace
