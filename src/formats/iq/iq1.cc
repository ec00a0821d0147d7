#include "src/formats/iq/iq1.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "src/formats/search/search.h"

namespace lowbit {
namespace {

constexpr size_t kDims = 8, kMaxGroup = 32;

// A group of weights that share a scale. `order` sorts them: order[n] is the index of the n-th lowest. Equal weights
// keep their order, because the reference's qsort is glibc's merge sort. With NaN the order is unspecified.
struct Group {
  size_t num;
  const float* x;
  float w[kMaxGroup];
  size_t order[kMaxGroup];
};

// The best assignment of levels: 0 to the `first` lowest weights, 1 to those below `second`, 2 to the rest.
struct Split {
  bool found;
  size_t first, second;
  int shifts;
  float scale;
};

// The levels of the group under a split. If the scale is negative, levels and shifts are mirrored to make it positive.
void TakeLevels(const Group& group, int all_shifts, Split& split, uint32_t* levels) {
  const bool negative = split.scale < 0.0f;
  for (size_t n = 0; n < group.num; ++n) {
    const uint32_t level = n < split.first ? 0 : n < split.second ? 1 : 2;
    levels[group.order[n]] = negative ? 2 - level : level;
  }
  if (negative) {
    split.scale = -split.scale;
    split.shifts ^= all_shifts;
  }
}

// Whether eight weights have the shift -1/8.
bool IsDown(const Group& group, const Split& split, size_t k) {
  return (group.num == 32 ? split.shifts : split.shifts >> (1 - k) & 1) != 0;
}

// Replaces points off the grid and refits the scale. Returns the scale.
float TakePoints(const Grid& grid, const Group& group, const Split& split, const uint32_t* levels, uint16_t* points) {
  bool moved = false;
  float sum_xq = 0.0f, sum_q2 = 0.0f;
  for (size_t k = 0; k < group.num / kDims; ++k) {
    const bool down = IsDown(group, split, k);
    float costs[kDims * 3];
    uint32_t code = 0;
    for (size_t i = 0; i < kDims; ++i) {
      const size_t at = k * kDims + i;
      code |= levels[at] << (2 * i);
      for (uint32_t level = 0; level < 3; ++level) {
        const float difference = split.scale * Iq1Value(level, down) - group.x[at];
        costs[i * 3 + level] = group.w[at] * difference * difference;
      }
    }
    if (!grid.Contains(code)) {
      moved = true;
      code = grid.SlowNearest(code, costs, 3);
    }
    points[k] = static_cast<uint16_t>(grid.Index(code));
    for (size_t i = 0; i < kDims; ++i) {
      const float q = Iq1Value(code >> (2 * i) & 3, down);
      sum_xq += group.w[k * kDims + i] * q * group.x[k * kDims + i];
      sum_q2 += group.w[k * kDims + i] * q * q;
    }
  }
  return moved && sum_xq > 0.0f && sum_q2 > 0.0f ? sum_xq / sum_q2 : split.scale;
}

// Takes a candidate if its score sum_xq^2 / sum_q2 is larger.
void Consider(float sum_xq, float sum_q2, size_t first, size_t second, int shifts, float* best, Split* split) {
  if (!(sum_q2 > 0.0f && sum_xq * sum_xq > *best * sum_q2)) return;
  const float scale = sum_xq / sum_q2;
  *best = scale * sum_xq;
  *split = {true, first, second, shifts, scale};
}

// Tries every split with both shifts.
Split SplitWithOneShift(const Group& group) {
  const float up[3] = {Iq1Value(0, false), Iq1Value(1, false), Iq1Value(2, false)};
  const float down[3] = {Iq1Value(0, true), Iq1Value(1, true), Iq1Value(2, true)};
  const size_t num = group.num;
  float sum_x[kMaxGroup + 1] = {}, sum_w[kMaxGroup + 1] = {};
  for (size_t n = 0; n < num; ++n) {
    const size_t i = group.order[n];
    sum_x[n + 1] = sum_x[n] + group.w[i] * group.x[i];
    sum_w[n + 1] = sum_w[n] + group.w[i];
  }
  Split split{};
  float best = -FLT_MAX;
  for (size_t first = 0; first <= num; ++first) {
    for (size_t second = first; second <= num; ++second) {
      const float x0 = sum_x[first], x1 = sum_x[second] - sum_x[first], x2 = sum_x[num] - sum_x[second];
      const float w0 = sum_w[first], w1 = sum_w[second] - sum_w[first], w2 = sum_w[num] - sum_w[second];
      for (int shifts = 0; shifts < 2; ++shifts) {
        const float* v = shifts == 0 ? up : down;
        const float sum_xq = x0 * v[0] + x1 * v[1] + x2 * v[2];
        const float sum_q2 = w0 * v[0] * v[0] + w1 * v[1] * v[1] + w2 * v[2] * v[2];
        Consider(sum_xq, sum_q2, first, second, shifts, &best, &split);
      }
    }
  }
  return split;
}

// Tries every split with a shift for each half. The levels are 1 apart, so sum x * q is (sum of all x) * v[2] minus
// sum_x[first] and sum_x[second]. The same holds for sum q^2.
Split SplitWithTwoShifts(const Group& group) {
  const size_t num = group.num;
  float sum_x[2][kMaxGroup + 1] = {}, sum_w[2][kMaxGroup + 1] = {};
  for (size_t n = 0; n < num; ++n) {
    const size_t i = group.order[n];
    for (size_t half = 0; half < 2; ++half) {
      const bool inside = i / kDims == half;
      sum_x[half][n + 1] = inside ? sum_x[half][n] + group.w[i] * group.x[i] : sum_x[half][n];
      sum_w[half][n + 1] = inside ? sum_w[half][n] + group.w[i] : sum_w[half][n];
    }
  }
  Split split{};
  float best = -FLT_MAX;
  for (size_t first = 0; first <= num; ++first) {
    for (size_t second = first; second <= num; ++second) {
      float xq[2][2], q2[2][2];  // by half and shift
      for (size_t half = 0; half < 2; ++half) {
        const float both = sum_x[half][first] + sum_x[half][second];
        for (int down = 0; down < 2; ++down) {
          const float v0 = Iq1Value(0, down), v1 = Iq1Value(1, down), v2 = Iq1Value(2, down);
          xq[half][down] = sum_x[half][num] * v2 - both;
          q2[half][down] = sum_w[half][num] * v2 * v2 + sum_w[half][first] * (v0 * v0 - v1 * v1) +
                           sum_w[half][second] * (v1 * v1 - v2 * v2);
        }
      }
      for (int shifts = 0; shifts < 4; ++shifts) {
        const int a = shifts >> 1, b = shifts & 1;
        Consider(xq[0][a] + xq[1][b], q2[0][a] + q2[1][b], first, second, shifts, &best, &split);
      }
    }
  }
  return split;
}

float Variance(const float* x) {
  float sum_x2 = 0.0f;
  for (size_t i = 0; i < 256; ++i) sum_x2 += x[i] * x[i];
  return 2 * sum_x2 / 256;
}

Group MakeGroup(size_t num, const float* x, const float* importance, float variance) {
  Group group{num, x, {}, {}};
  for (size_t i = 0; i < num; ++i) {
    group.w[i] = importance ? importance[i] * std::sqrt(variance + x[i] * x[i]) : x[i] * x[i];
    // Insertion sort: stable, and safe for any result of comparisons with NaN.
    size_t n = i;
    for (; n > 0 && x[i] < x[group.order[n - 1]]; --n) group.order[n] = group.order[n - 1];
    group.order[n] = i;
  }
  return group;
}

// Fits num weights. Returns the scale, or 0 for a group that counts as zero.
float FitGroup(size_t num, float negligible, const float* x, const float* importance, float variance, uint16_t* points,
               uint8_t* shifts) {
  float largest = std::fabs(x[0]);
  for (size_t i = 1; i < num; ++i) largest = largest > std::fabs(x[i]) ? largest : std::fabs(x[i]);
  if (largest < negligible) return 0.0f;
  const Group group = MakeGroup(num, x, importance, variance);
  Split split = num == 32 ? SplitWithOneShift(group) : SplitWithTwoShifts(group);
  if (!split.found) return 0.0f;
  uint32_t levels[kMaxGroup];
  TakeLevels(group, num == 32 ? 1 : 3, split, levels);
  *shifts = static_cast<uint8_t>(split.shifts);
  return TakePoints(Iq1Grid(), group, split, levels, points);
}

// Codes for the scales of num groups. Returns false if all scales are 0.
bool TakeScales(size_t num, const float* scales, Iq1Block* block) {
  float largest = 0.0f;
  for (size_t j = 0; j < num; ++j) largest = largest > scales[j] ? largest : scales[j];
  if (largest == 0.0f) return false;
  block->d = largest / 15;
  const float multiplier = 1.0f / block->d;
  for (size_t j = 0; j < num; ++j) {
    block->scales[j] = static_cast<uint8_t>(reference::NearestCode(0.5f * (multiplier * scales[j] - 1), 0, 7));
  }
  return true;
}

}  // namespace

void Iq1SReference(const float* x, const float* importance, Iq1Block* block) {
  *block = {};
  const float variance = Variance(x);
  float scales[8];
  for (size_t j = 0; j < 8; ++j) {
    scales[j] = FitGroup(32, kIq1SNegligible, x + 32 * j, importance + 32 * j, variance, block->points + 4 * j,
                         &block->shifts[j]);
  }
  if (TakeScales(8, scales, block)) {
    block->d *= kIq1SFactor;
  } else {
    std::fill(block->shifts, block->shifts + 8, uint8_t{0});
  }
}

void Iq1MReference(const float* x, const float* importance, Iq1Block* block) {
  *block = {};
  const float variance = Variance(x);
  float scales[16];
  for (size_t j = 0; j < 16; ++j) {
    scales[j] = FitGroup(16, kIq1MNegligible, x + 16 * j, importance ? importance + 16 * j : nullptr, variance,
                         block->points + 2 * j, &block->shifts[j]);
  }
  if (!TakeScales(16, scales, block)) {
    std::fill(block->shifts, block->shifts + 16, uint8_t{0});
    return;
  }
  float sum_xq = 0.0f, sum_q2 = 0.0f;
  for (size_t i = 0; i < 256; ++i) {
    const size_t j = i / 16;
    const uint32_t code = Iq1Grid().Point(block->points[i / kDims]);
    const bool down = (block->shifts[j] >> (1 - i / kDims % 2) & 1) != 0;
    const float q = Iq1Value(code >> (2 * (i % kDims)) & 3, down) * static_cast<float>(2 * block->scales[j] + 1);
    const float w = importance ? importance[i] * std::sqrt(variance + x[i] * x[i]) : x[i] * x[i];
    sum_xq += w * q * x[i];
    sum_q2 += w * q * q;
  }
  if (sum_q2 > 0.0f) block->d = sum_xq / sum_q2;
  block->d *= kIq1MFactor;
}

}  // namespace lowbit
