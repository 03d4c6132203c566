#include "screened_head.h"

#if defined(__AMX_INT8__)

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "buffer.h"
#include "linear_tasks.h"
#include "team.h"
#include "threads.h"
#include "tiles.h"
#include "twelve_bit_steps.h"

namespace headrace {
namespace {

static_assert(kScreenWidth == kPanelWidth, "a panel of the screen stands for one of the weight");

constexpr int64_t kStepBytes = kScreenWidth * kScreenDepth;
constexpr int64_t kTileBytes = kStepBytes / 2;

// What storing a bfloat16, which has eight bits, rounds, in parts of the value.
constexpr float kRounding = 1.0f / 256;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

enum Phase { kSplit, kLook, kMultiply, kFind, kPhaseCount };

// The rows of the input as sums of two numbers of eight bits, which lose next to nothing, in groups of as many as two
// tiles hold so. NOTE: a few elements of a hidden state are often much larger than the others. In eight bits, rounded
// by the largest, so little was left of the rest that most panels had to be multiplied as they are.
class SplitRows {
 public:
  SplitRows(const BFloat16* input, const ScreenedHeadShape& shape)
      : input_(input),
        row_stride_(shape.row_stride),
        in_count_(shape.in_count),
        row_count_(shape.row_count),
        group_count_((row_count_ + kRowsPerGroup - 1) / kRowsPerGroup),
        rows_per_group_((row_count_ + group_count_ - 1) / group_count_),
        depth_(shape.screen_step_count() * kScreenDepth),
        parts_(group_count_ * 2 * rows_per_group_ * depth_) {}

  void split(int64_t row) {
    const BFloat16* input = input_ + row * row_stride_;
    int8_t* high = parts_.data() + (row / rows_per_group_ * rows_per_group_ + row) * depth_;
    int8_t* low = high + rows_per_group_ * depth_;
    // Summing rounds.
    const float margin = 1.0f + static_cast<float>(in_count_ + 8) * 0x1.0p-23f;
    float largest = 0.0f;
    float sum = 0.0f;
    for (int64_t in = 0; in < in_count_; ++in) {
      const float value = widen(input[in]);
      largest = std::max(largest, std::fabs(value));
      sum += value * value;
    }
    norms_[row] = std::sqrt(sum) * margin;
    if (!is_bounded(norms_[row])) return;
    const float factor = largest / kLargest;
    const float inverse = kLargest / largest;
    float rest_sum = 0.0f;
    for (int64_t in = 0; in < in_count_; ++in) {
      const float value = widen(input[in]);
      const float whole = std::nearbyint(value * inverse);
      high[in] = static_cast<int8_t>(whole);
      const float rest = value - whole * factor;
      const float part = std::clamp(std::nearbyint(rest * inverse * kLowSteps), -kLargest, kLargest);
      low[in] = static_cast<int8_t>(part);
      const float left = rest - part * (factor / kLowSteps);
      rest_sum += left * left;
    }
    factors_[row] = factor;
    // What is left was rounded, too.
    rest_norms_[row] = std::sqrt(rest_sum) * margin + norms_[row] * 0x1.0p-22f;
  }

  // [part, row][depth] of a group; the last one may have fewer rows, and zeros in their place.
  const int8_t* group(int64_t index) const { return parts_.data() + index * 2 * rows_per_group_ * depth_; }
  int64_t group_count() const { return group_count_; }
  int64_t rows_per_group() const { return rows_per_group_; }
  int64_t depth() const { return depth_; }

  // Whether the sums can tell anything, once all rows are split.
  bool are_bounded() const { return std::all_of(norms_.begin(), norms_.begin() + row_count_, is_bounded); }

  float high_factor(int64_t row) const { return factors_[row]; }
  float low_factor(int64_t row) const { return factors_[row] / kLowSteps; }
  // Of the row, and of what its parts leave of it.
  float norm(int64_t row) const { return norms_[row]; }
  float rest_norm(int64_t row) const { return rest_norms_[row]; }

 private:
  static constexpr int64_t kRowsPerGroup = 16;
  static constexpr float kLargest = 127.0f;
  static constexpr float kLowSteps = 254.0f;

  // Whether no sum of floats overflows, and no square that matters is lost; false for what is no number.
  static bool is_bounded(float norm) { return norm > kSmallestNorm && norm < kLargestNorm; }

  const BFloat16* input_;
  const int64_t row_stride_;
  const int64_t in_count_;
  const int64_t row_count_;
  const int64_t group_count_;
  const int64_t rows_per_group_;
  const int64_t depth_;
  Buffer<int8_t> parts_;
  std::array<float, kScreenedRows> factors_;
  std::array<float, kScreenedRows> norms_;
  std::array<float, kScreenedRows> rest_norms_;
};

// Multiplies the parts of the rows by panels of a screen on one thread.
class ScreenProduct {
 public:
  explicit ScreenProduct(int64_t row_count) : is_long_(row_count > 16) { configure_tiles(row_count); }
  ScreenProduct(const ScreenProduct&) = delete;
  ScreenProduct& operator=(const ScreenProduct&) = delete;
  ~ScreenProduct() { release_tiles(); }

  // sums [row][32]. The panel is fetched ahead of its use, and so is the one that is wanted after it; null when the
  // panel was read before.
  void multiply(const int8_t* rows, int64_t depth, const int8_t* panel, const int8_t* ahead, int32_t* sums) const {
    if (is_long_) {
      multiply_tiles<2>(rows, depth, panel, ahead, sums);
    } else {
      multiply_tiles<1>(rows, depth, panel, ahead, sums);
    }
  }

 private:
  template <int kTileRows>
  static void multiply_tiles(const int8_t* rows, int64_t depth, const int8_t* panel, const int8_t* ahead,
                             int32_t* sums) {
    const int64_t panel_bytes = depth * kScreenWidth;
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTileRows == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t in = 0; in < depth; in += kScreenDepth) {
      const int8_t* tiles = panel + in * kScreenWidth;
      if (ahead != nullptr) {
        const int64_t wanted = in * kScreenWidth + kFetchAheadBytes;
        const int8_t* lines = wanted < panel_bytes ? panel + wanted : ahead + wanted - panel_bytes;
        for (int64_t byte = 0; byte < kStepBytes; byte += 64)
          _mm_prefetch(reinterpret_cast<const char*>(lines + byte), _MM_HINT_T0);
      }
      _tile_loadd(4, rows + in, depth);
      _tile_loadd(6, tiles, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, tiles + kTileBytes, 64);
      _tile_dpbssd(1, 4, 7);
      if constexpr (kTileRows == 2) {
        _tile_loadd(5, rows + 16 * depth + in, depth);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
    constexpr int64_t kRowBytes = kScreenWidth * sizeof(int32_t);
    _tile_stored(0, sums, kRowBytes);
    _tile_stored(1, sums + 16, kRowBytes);
    if constexpr (kTileRows == 2) {
      _tile_stored(2, sums + 16 * kScreenWidth, kRowBytes);
      _tile_stored(3, sums + 16 * kScreenWidth + 16, kRowBytes);
    }
  }

  const bool is_long_;
};

// What the largest logit of each row is at least, by what one thread has seen.
typedef std::array<Floats, kScreenedRows> LowerBounds;

inline float largest_of(Floats values) { return _mm512_reduce_max_ps(reinterpret_cast<__m512>(values)); }

template <typename W>
class ScreenedHead {
 public:
  ScreenedHead(const BFloat16* input, const W* panels, const Screen& screen, const ScreenedHeadShape& shape,
               BFloat16* logits)
      : shape_(shape),
        screen_(screen),
        rows_(input, shape),
        products_({input, panels, nullptr, nullptr, logits},
                  {shape.row_count, shape.row_stride, shape.in_count, shape.out_count, false}),
        logits_(logits),
        upper_bounds_(shape.panel_count() * shape.row_count),
        team_(kPhaseCount) {}

  void run(int64_t* token_ids, float* peaks) {
    const int64_t thread_count = std::min(max_thread_count(), shape_.panel_count());
    lower_bounds_.resize(thread_count);
    for (LowerBounds& bounds : lower_bounds_) bounds.fill(broadcast(kLowest));
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
    {
#pragma omp single
      team_.resize(omp_get_num_threads());
      for_rows(kSplit, [&](int64_t row) { rows_.split(row); });
      team_.wait();
      if (rows_.are_bounded()) look(lower_bounds_[omp_get_thread_num()]);
      team_.wait();
      if (omp_get_thread_num() == 0) choose_panels();
      team_.wait();
      const auto claim = [&] {
        const int64_t place = team_.claim(kMultiply);
        return place < static_cast<int64_t>(chosen_.size()) ? chosen_[place] : shape_.panel_count();
      };
      PanelProduct<BFloat16> product;
      products_.run(claim(), product, claim);
      team_.wait();
      for_rows(kFind, [&](int64_t row) { find_likeliest(row, token_ids[row], peaks[row]); });
    }
  }

 private:
  template <typename Body>
  void for_rows(Phase phase, const Body& body) {
    for (int64_t row = team_.claim(phase); row < shape_.row_count; row = team_.claim(phase)) body(row);
  }

  // Takes part in bounding the logits of all panels.
  void look(LowerBounds& lower) {
    const int64_t rows_per_group = rows_.rows_per_group();
    const ScreenProduct product(2 * rows_per_group);
    const int64_t last = shape_.panel_count() - 1;
    alignas(64) int32_t sums[2 * 16 * kScreenWidth];
    for (int64_t panel = team_.claim(kLook); panel <= last;) {
      const int64_t next = team_.claim(kLook);
      for (int64_t group = 0; group < rows_.group_count(); ++group) {
        product.multiply(rows_.group(group), rows_.depth(), screen_panel(panel),
                         group == 0 ? screen_panel(std::min(next, last)) : nullptr, sums);
        const int64_t first = group * rows_per_group;
        for (int64_t row = first; row < std::min(first + rows_per_group, shape_.row_count); ++row) {
          const int32_t* high_sums = sums + (row - first) * kScreenWidth;
          bound(panel, row, high_sums, high_sums + rows_per_group * kScreenWidth, lower[row]);
        }
      }
      panel = next;
    }
  }

  const int8_t* screen_panel(int64_t panel) const {
    return screen_.panels + panel * shape_.screen_step_count() * kStepBytes;
  }

  // Bounds the logits of a row in a panel by the sums of its parts.
  void bound(int64_t panel, int64_t row, const int32_t* high_sums, const int32_t* low_sums, Floats& lower) {
    const float rest = rows_.rest_norm(row) * screen_.norm * (1.0f + 2.0f * kRounding);
    const float norm = rows_.norm(row) * (1.0f + 2.0f * kRounding);
    Floats upper = broadcast(kLowest);
    for (int64_t place = 0; place < kScreenWidth; place += kLanes) {
      const int64_t out = panel * kScreenWidth + place;
      const int64_t count = shape_.out_count - out;
      const Floats sum =
          widen_sums(high_sums + place) * rows_.high_factor(row) + widen_sums(low_sums + place) * rows_.low_factor(row);
      const Floats output = sum * load_at_most(screen_.scales + out, count);
      const Floats magnitude = output < 0.0f ? -output : output;
      const Floats distance = load_at_most(screen_.errors + out, count) * norm + rest + magnitude * (1.01f * kRounding);
      const Ints is_output = kPlaces < static_cast<int32_t>(count);
      const Floats least = is_output ? output - distance : broadcast(kLowest);
      const Floats most = is_output ? output + distance : broadcast(kLowest);
      lower = least > lower ? least : lower;
      upper = most > upper ? most : upper;
    }
    upper_bounds_[panel * shape_.row_count + row] = largest_of(upper);
  }

  static Floats widen_sums(const int32_t* sums) {
    Ints whole;
    std::memcpy(&whole, sums, sizeof(whole));
    return __builtin_convertvector(whole, Floats);
  }

  // Chooses the panels that may hold a row's largest logit.
  void choose_panels() {
    const bool is_bounded = rows_.are_bounded();
    std::array<float, kScreenedRows> lowest;
    for (int64_t row = 0; row < shape_.row_count; ++row) {
      lowest[row] = kLowest;
      for (const LowerBounds& bounds : lower_bounds_) lowest[row] = std::max(lowest[row], largest_of(bounds[row]));
    }
    for (int64_t panel = 0; panel < shape_.panel_count(); ++panel) {
      bool may_hold_largest = !is_bounded;
      for (int64_t row = 0; row < shape_.row_count; ++row)
        may_hold_largest |= upper_bounds_[panel * shape_.row_count + row] >= lowest[row];
      if (may_hold_largest) chosen_.push_back(panel);
    }
  }

  void find_likeliest(int64_t row, int64_t& token_id, float& peak) const {
    const BFloat16* outputs = logits_ + row * shape_.out_count;
    token_id = 0;
    peak = kLowest;
    bool is_broken = false;
    for (const int64_t panel : chosen_)
      for (int64_t out = panel * kScreenWidth; out < std::min((panel + 1) * kScreenWidth, shape_.out_count); ++out) {
        const float logit = widen(outputs[out]);
        is_broken |= logit != logit;
        if (logit > peak) {
          peak = logit;
          token_id = out;
        }
      }
    if (is_broken) peak = std::numeric_limits<float>::quiet_NaN();
  }

  static constexpr Ints kPlaces = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

  const ScreenedHeadShape shape_;
  const Screen screen_;
  SplitRows rows_;
  const LinearTasks<BFloat16, W> products_;
  const BFloat16* logits_;
  std::vector<LowerBounds> lower_bounds_;
  // [panel][row] what the logits of a panel are at most.
  std::vector<float> upper_bounds_;
  // Ascending.
  std::vector<int64_t> chosen_;
  Team team_;
};

}  // namespace

void pack_screen(const int8_t* values, const ScreenedHeadShape& shape, int8_t* panels) {
  const int64_t panel_bytes = shape.screen_step_count() * kStepBytes;
  parallel_shares(shape.panel_count(), max_thread_count(), [&](Share share) {
    for (int64_t out = share.begin * kScreenWidth; out < std::min(share.end * kScreenWidth, shape.out_count); ++out) {
      int8_t* panel = panels + out / kScreenWidth * panel_bytes + out % kScreenWidth / 16 * kTileBytes + out % 16 * 4;
      for (int64_t in = 0; in < shape.in_count; ++in)
        panel[in / kScreenDepth * kStepBytes + in % kScreenDepth / 4 * 64 + in % 4] = values[out * shape.in_count + in];
    }
  });
}

template <typename W>
void likeliest_of_head(const BFloat16* input, const W* panels, const Screen& screen, const ScreenedHeadShape& shape,
                       BFloat16* logits, int64_t* token_ids, float* peaks) {
  ScreenedHead<W>(input, panels, screen, shape, logits).run(token_ids, peaks);
}

#define INSTANTIATE(W)                                                                                           \
  template void likeliest_of_head(const BFloat16*, const W*, const Screen&, const ScreenedHeadShape&, BFloat16*, \
                                  int64_t*, float*);
INSTANTIATE(BFloat16)
INSTANTIATE(TwelveBitStep)
#undef INSTANTIATE

}  // namespace headrace

#endif
