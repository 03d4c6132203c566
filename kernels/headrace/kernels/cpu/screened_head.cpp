#include "screened_head.h"

#if defined(__AMX_INT8__)

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "buffer.h"
#include "linear_tasks.h"
#include "split_rows.h"
#include "team.h"
#include "threads.h"
#include "twelve_bit_steps.h"

namespace headrace {
namespace {

// What storing a bfloat16, which has eight bits, rounds, in parts of the value.
constexpr float kRounding = 1.0f / 256;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

enum Phase { kSplit, kLook, kChoose, kMultiply, kFind, kPhaseCount };

// The rows of the input in parts, and how far sums of these may be off.
class BoundedRows {
 public:
  BoundedRows(const BFloat16* input, const ScreenedHeadShape& shape)
      : input_(input),
        row_stride_(shape.row_stride),
        in_count_(shape.in_count),
        row_count_(shape.row_count),
        depth_(round_up(shape.in_count, kStepDepth<TileByte>)),
        parts_(SplitRows::capacity(shape.row_count, depth_)),
        rows_(parts_.data(), factors_.data(), shape.row_count, depth_) {}

  void split(int64_t row) {
    Floats squares = {};
    Floats rest_squares = {};
    rows_.split(row, input_ + row * row_stride_, in_count_, [&](Floats elements, Floats left) {
      squares += elements * elements;
      rest_squares += left * left;
    });
    // Summing rounds.
    const float margin = 1.0f + static_cast<float>(in_count_ + 8) * 0x1.0p-23f;
    norms_[row] = std::sqrt(sum(squares)) * margin;
    // What is left was rounded, too.
    rest_norms_[row] = std::sqrt(sum(rest_squares)) * margin + norms_[row] * 0x1.0p-22f;
  }

  const SplitRows& rows() const { return rows_; }
  int64_t depth() const { return depth_; }

  // Whether the sums can tell anything, once all rows are split.
  bool are_bounded() const { return std::all_of(norms_.begin(), norms_.begin() + row_count_, is_bounded); }

  // Of the row, and of what its parts leave of it.
  float norm(int64_t row) const { return norms_[row]; }
  float rest_norm(int64_t row) const { return rest_norms_[row]; }

 private:
  // Whether no sum of floats overflows, and no square that matters is lost; false for what is no number.
  static bool is_bounded(float norm) { return norm > kSmallestNorm && norm < kLargestNorm; }

  const BFloat16* input_;
  const int64_t row_stride_;
  const int64_t in_count_;
  const int64_t row_count_;
  const int64_t depth_;
  Buffer<TileByte> parts_;
  std::array<float, kScreenedRows> factors_;
  std::array<float, kScreenedRows> norms_;
  std::array<float, kScreenedRows> rest_norms_;
  const SplitRows rows_;
};

// What the largest logit of each row is at least, by what one thread has seen.
typedef std::array<Floats, kScreenedRows> LowerBounds;

template <typename W>
class ScreenedHead {
 public:
  ScreenedHead(const BFloat16* input, const W* panels, const Screen& screen, const ScreenedHeadShape& shape,
               BFloat16* logits)
      : shape_(shape),
        screen_(screen),
        rows_(input, shape),
        products_({input, panels, nullptr, nullptr, logits}, {input, shape.row_stride},
                  {shape.row_count, shape.row_stride, shape.in_count, shape.out_count, false}),
        logits_(logits),
        upper_bounds_(shape.panel_count() * shape.row_count),
        team_(kPhaseCount, std::min(max_thread_count(), shape.panel_count())) {
    LowerBounds none;
    none.fill(broadcast(kLowest));
    lower_bounds_.resize(team_.thread_count(), none);
  }

  void run(int64_t* token_ids, float* peaks) {
    const int64_t thread_count = team_.thread_count();
#pragma omp parallel num_threads(static_cast<int>(thread_count)) if (thread_count > 1)
    {
      const TeamPlace place(team_);
      PanelProduct<BFloat16> product;
      place.share_each(kSplit, shape_.row_count, [&](int64_t row) { rows_.split(row); });
      if (rows_.are_bounded()) {
        place.share(kLook, shape_.panel_count(), [&](TeamPart& part) { look(product, part, place.thread()); });
      }
      place.share_each(kChoose, 1, [&](int64_t) { choose_panels(); });
      place.share(kMultiply, static_cast<int64_t>(chosen_.size()), [&](TeamPart& part) {
        ChosenPanels panels(part, chosen_, shape_.panel_count());
        products_.run(product, panels);
      });
      place.share_each(kFind, shape_.row_count, [&](int64_t row) { find_likeliest(row, token_ids[row], peaks[row]); });
    }
  }

 private:
  // The tasks of the products of some panels alone.
  class ChosenPanels {
   public:
    ChosenPanels(TeamPart& part, const std::vector<int64_t>& chosen, int64_t panel_count)
        : part_(part), chosen_(chosen), panel_count_(panel_count) {}

    int64_t claim() {
      const int64_t place = part_.claim();
      return place < static_cast<int64_t>(chosen_.size()) ? chosen_[place] : panel_count_;
    }

   private:
    TeamPart& part_;
    const std::vector<int64_t>& chosen_;
    const int64_t panel_count_;
  };

  // Takes part in bounding the logits of all panels.
  void look(PanelProduct<BFloat16>& product, TeamPart& part, int64_t thread) {
    LowerBounds& lower = lower_bounds_[thread];
    const SplitRows& rows = rows_.rows();
    const int64_t last = shape_.panel_count() - 1;
    alignas(64) int32_t sums[kRowBlock * kPanelWidth];
    for (int64_t panel = part.claim(); panel <= last;) {
      const int64_t next = part.claim();
      for (int64_t first = 0; first < shape_.row_count; first += rows.rows_per_block()) {
        const int64_t row_count = std::min(rows.rows_per_block(), shape_.row_count - first);
        const TileByte* ahead = first == 0 ? screen_panel(std::min(next, last)) : nullptr;
        product.multiply(rows.block(first), rows.stride(), rows.line_count(row_count),
                         PanelView<TileByte>{screen_panel(panel)}, rows_.depth(), ahead, sums, kPanelWidth, [] {});
        for (int64_t place = 0; place < row_count; ++place) bound(panel, first, place, sums, lower[first + place]);
      }
      panel = next;
    }
  }

  const TileByte* screen_panel(int64_t panel) const { return screen_.panels + panel * rows_.depth() * kPanelWidth; }

  // Bounds the logits of a row in a panel by the sums of its block, which begins at row `first`.
  void bound(int64_t panel, int64_t first, int64_t place, const int32_t* sums, Floats& lower) {
    const int64_t row = first + place;
    const float rest = rows_.rest_norm(row) * screen_.norm * (1.0f + 2.0f * kRounding);
    const float norm = rows_.norm(row) * (1.0f + 2.0f * kRounding);
    Floats upper = broadcast(kLowest);
    for (int64_t half = 0; half < kPanelWidth; half += kLanes) {
      const int64_t out = panel * kPanelWidth + half;
      const int64_t count = shape_.out_count - out;
      const Floats sum = rows_.rows().sums_of_row(sums + half, kPanelWidth, first, place);
      const Floats output = sum * load_at_most(screen_.scales + out, count);
      const Floats magnitude = output < 0.0f ? -output : output;
      const Floats distance = load_at_most(screen_.errors + out, count) * norm + rest + magnitude * (1.01f * kRounding);
      const Ints is_output = kPlaces < static_cast<int32_t>(count);
      const Floats least = is_output ? output - distance : broadcast(kLowest);
      const Floats most = is_output ? output + distance : broadcast(kLowest);
      lower = least > lower ? least : lower;
      upper = most > upper ? most : upper;
    }
    upper_bounds_[panel * shape_.row_count + row] = largest(upper);
  }

  // Chooses the panels that may hold a row's largest logit.
  void choose_panels() {
    const bool is_bounded = rows_.are_bounded();
    std::array<float, kScreenedRows> lowest;
    for (int64_t row = 0; row < shape_.row_count; ++row) {
      lowest[row] = kLowest;
      for (const LowerBounds& bounds : lower_bounds_) lowest[row] = std::max(lowest[row], largest(bounds[row]));
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
      for (int64_t out = panel * kPanelWidth; out < std::min((panel + 1) * kPanelWidth, shape_.out_count); ++out) {
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
  BoundedRows rows_;
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
