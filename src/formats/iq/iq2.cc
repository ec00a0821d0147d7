#include "src/formats/iq/iq2.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/formats/search/search.h"

namespace lowbit {
namespace {

constexpr size_t kDims = 8, kMaxGroup = 32, kMaxSubgroups = kMaxGroup / kDims;
constexpr int kTopLevel = 2;
constexpr float kTopValue = 5.0f;  // 2 * kTopLevel + 1

// A group of weights that share a scale. Errors are weighted by w. The replacement for a point off the grid has the
// least error weighted by the square roots of w.
struct Group {
  size_t num;
  float x[kMaxGroup];  // magnitudes; negative for a flipped sign
  float w[kMaxGroup];
  float root_w[kMaxGroup];
  uint8_t signs[kMaxSubgroups];
  uint32_t codes[kMaxSubgroups];
  bool moved[kMaxSubgroups];  // was off the grid
};

// If the number of minus signs must be even, the weight with the lowest cost gets the wrong sign.
void SplitSigns(bool even_signs, const float* x, Group& group) {
  for (size_t k = 0; k < group.num / kDims; ++k) {
    int signs = 0, num_negative = 0;
    for (size_t i = 0; i < kDims; ++i) {
      const bool negative = !(x[k * kDims + i] >= 0.0f);
      group.x[k * kDims + i] = negative ? -x[k * kDims + i] : x[k * kDims + i];
      signs |= negative << i;
      num_negative += negative;
    }
    if (even_signs && num_negative % 2 != 0) {
      size_t cheapest = 0;
      float least = 0.0f;
      for (size_t i = 0; i < kDims; ++i) {
        const float cost = group.w[k * kDims + i] * x[k * kDims + i] * x[k * kDims + i];
        if (i != 0 && !(cost < least)) continue;
        least = cost;
        cheapest = i;
      }
      group.x[k * kDims + cheapest] = -group.x[k * kDims + cheapest];
      signs ^= 1 << cheapest;
    }
    group.signs[k] = static_cast<uint8_t>(even_signs ? signs & 127 : signs);
  }
}

// The grid point for the weights of subgroup k: rounded with `multiplier`, replaced with respect to `scale`.
uint32_t NearestPoint(const Grid& grid, const Group& group, size_t k, float multiplier, float scale, bool* moved) {
  uint32_t code = 0;
  for (size_t i = 0; i < kDims; ++i) {
    const float x = group.x[k * kDims + i];
    code |= static_cast<uint32_t>(reference::NearestCode(0.5f * (multiplier * x - 1), 0, kTopLevel)) << (2 * i);
  }
  *moved = !grid.Contains(code);
  if (!*moved) return code;
  float costs[kDims * 3];
  for (size_t i = 0; i < kDims; ++i) {
    for (int level = 0; level <= kTopLevel; ++level) {
      const float difference = scale * static_cast<float>(2 * level + 1) - group.x[k * kDims + i];
      costs[i * 3 + level] = group.root_w[k * kDims + i] * difference * difference;
    }
  }
  return grid.SlowNearest(code, costs, 3);
}

void Sums(const Group& group, const uint32_t* codes, float* sum_xq, float* sum_q2) {
  *sum_xq = *sum_q2 = 0.0f;
  for (size_t i = 0; i < group.num; ++i) {
    const float q = static_cast<float>(2 * (codes[i / kDims] >> (2 * (i % kDims)) & 3) + 1);
    *sum_xq += group.w[i] * group.x[i] * q;
    *sum_q2 += group.w[i] * q * q;
  }
}

// Rounds again with the fitted scale: all points, or only those that were off the grid.
float Refit(const Grid& grid, bool all, Group& group, float scale) {
  const size_t num = group.num / kDims;
  if (!(scale > 0.0f) || !(all || std::any_of(group.moved, group.moved + num, [](bool moved) { return moved; }))) {
    return scale;
  }
  bool moved;
  for (size_t k = 0; k < num; ++k) {
    if (all || group.moved[k]) group.codes[k] = NearestPoint(grid, group, k, 1.0f / scale, scale, &moved);
  }
  float sum_xq, sum_q2;
  Sums(group, group.codes, &sum_xq, &sum_q2);
  return sum_q2 > 0.0f ? sum_xq / sum_q2 : scale;
}

// Fits codes and scale. The scale may be negative. Returns false for a group that counts as zero.
bool Fit(const Iq2Search& search, const Grid& grid, Group& group, float* scale_out) {
  *scale_out = 0.0f;
  float largest = group.x[0];
  for (size_t i = 1; i < group.num; ++i) largest = largest > group.x[i] ? largest : group.x[i];
  if (largest < search.negligible) return false;
  float scale = largest / kTopValue;
  if (search.fit_first) {
    uint8_t codes[kMaxGroup];
    scale = reference::FitPositive(group.num, 4, group.x, group.w, codes);
    largest = scale * 3;
    if (largest <= 0.0f) return false;
  }
  float best = 0.0f;
  for (int step = -search.steps; step <= search.steps; ++step) {
    const float multiplier = (kTopValue + static_cast<float>(step) * 0.1f) / largest;
    uint32_t codes[kMaxSubgroups];
    bool moved[kMaxSubgroups];
    for (size_t k = 0; k < group.num / kDims; ++k) {
      codes[k] = NearestPoint(grid, group, k, multiplier, 1.0f / multiplier, &moved[k]);
    }
    float sum_xq, sum_q2;
    Sums(group, codes, &sum_xq, &sum_q2);
    if (!(sum_q2 > 0.0f && sum_xq * sum_xq > best * sum_q2)) continue;
    scale = sum_xq / sum_q2;
    best = scale * sum_xq;
    std::copy(codes, codes + group.num / kDims, group.codes);
    std::copy(moved, moved + group.num / kDims, group.moved);
  }
  *scale_out = Refit(grid, search.fit_first, group, scale);
  return true;
}

}  // namespace

void Iq2Reference(const Iq2Search& search, const Grid& grid, const float* x, const float* importance, Iq2Block* block) {
  *block = {};
  float sum_x2 = 0.0f, largest = 0.0f, scales[16];
  for (size_t i = 0; i < 256; ++i) sum_x2 += x[i] * x[i];
  const float variance = search.variance_factor * sum_x2 / 256;
  const size_t num_groups = search.group == 16 ? 16 : 8;
  for (size_t j = 0; j < num_groups; ++j) {
    Group group{};
    group.num = search.group;
    for (size_t i = 0; i < group.num; ++i) {
      const float xi = x[j * group.num + i], square = xi * xi;
      group.w[i] =
          importance ? importance[j * group.num + i] * std::sqrt(variance + square) : 0.25f * variance + square;
      group.root_w[i] = std::sqrt(group.w[i]);
    }
    SplitSigns(search.even_signs, x + j * group.num, group);
    float scale;
    const bool stored = Fit(search, grid, group, &scale);
    const bool negative = scale < 0.0f;
    scales[j] = negative ? -scale : scale;
    largest = largest > scales[j] ? largest : scales[j];
    for (size_t k = 0; stored && k < group.num / kDims; ++k) {
      const size_t at = j * (group.num / kDims) + k;
      block->points[at] = static_cast<uint16_t>(grid.Index(group.codes[k]));
      block->signs[at] =
          static_cast<uint8_t>(negative ? group.signs[k] ^ (search.even_signs ? 127 : 255) : group.signs[k]);
    }
  }
  if (largest == 0.0f) {
    if (search.even_signs) *block = {};  // IQ2_S keeps points and signs
    return;
  }
  block->d = largest / 31;
  const float multiplier = 1.0f / block->d;
  for (size_t j = 0; j < num_groups; ++j) {
    block->scales[j] = static_cast<uint8_t>(reference::NearestCode(0.5f * (multiplier * scales[j] - 1), 0, 15));
  }
}

}  // namespace lowbit
