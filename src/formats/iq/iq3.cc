// Sources: ggml-quants.c, quantize_row_iq3_xxs_impl, quantize_row_iq3_s_impl, iq3_find_best_neighbour.

#include "src/formats/iq/iq3.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "src/formats/search/search.h"

namespace lowbit {
namespace {

// A group of 32 weights.
struct Group {
  float x[kIq3Group];  // magnitudes; negative for a flipped sign
  float w[kIq3Group];
  float root_w[kIq3Group];
  uint8_t signs[kIq3Group / 8];
  uint16_t codes[kIq3Quads];
  bool on_grid[kIq3Quads];
};

// Splits x into magnitudes and signs. If the number of minus signs must be even and is not, the weight with the lowest
// cost gets the wrong sign, and its "magnitude" is negative.
void SplitSigns(bool even, const float* x, Group* group) {
  for (size_t k = 0; k < kIq3Group; k += 8) {
    uint32_t signs = 0, parity = 0;
    for (size_t i = 0; i < 8; ++i) {
      const bool negative = !(x[k + i] >= 0.0f);
      group->x[k + i] = negative ? -x[k + i] : x[k + i];
      signs |= static_cast<uint32_t>(negative) << i;
      parity ^= negative;
    }
    if (even) {
      size_t cheapest = 0;
      const auto cost = [&](size_t i) { return group->w[k + i] * x[k + i] * x[k + i]; };
      for (size_t i = 1; i < 8; ++i) {
        if (cost(i) < cost(cheapest)) cheapest = i;
      }
      if (parity) group->x[k + cheapest] = -group->x[k + cheapest];
      signs = (signs ^ parity << cheapest) & 127;
    }
    group->signs[k / 8] = static_cast<uint8_t>(signs);
  }
}

// The grid point for the weights of quad k: rounded with `multiplier`, replaced with respect to `scale`.
uint16_t NearestPoint(const Grid& grid, const Group& group, size_t k, float multiplier, float scale, bool* on_grid) {
  const float* x = group.x + kIq3Dims * k;
  uint32_t code = 0;
  for (size_t i = 0; i < kIq3Dims; ++i) {
    const int level = reference::NearestCode(0.5f * (multiplier * x[i] - 1.0f), 0, kIq3Levels - 1);
    code |= static_cast<uint32_t>(level) << (3 * i);
  }
  *on_grid = grid.Contains(code);
  if (*on_grid) return static_cast<uint16_t>(code);
  float costs[kIq3Group];
  for (size_t i = 0; i < kIq3Dims; ++i) {
    for (size_t l = 0; l < kIq3Levels; ++l) {
      const float difference = scale * static_cast<float>(2 * l + 1) - x[i];
      costs[i * kIq3Levels + l] = group.root_w[kIq3Dims * k + i] * difference * difference;
    }
  }
  return static_cast<uint16_t>(grid.SlowNearest(code, costs, kIq3Levels));
}

// Sums of w * x * q and of w * q * q over the group.
void Sums(const Group& group, const uint16_t* codes, float* sum_xq, float* sum_q2) {
  *sum_xq = *sum_q2 = 0.0f;
  for (size_t i = 0; i < kIq3Group; ++i) {
    const float q = static_cast<float>(2 * (codes[i / kIq3Dims] >> (3 * (i % kIq3Dims)) & 7) + 1);
    *sum_xq += group.w[i] * group.x[i] * q;
    *sum_q2 += group.w[i] * q * q;
  }
}

float Fit(const Iq3Search& search, const Grid& grid, float largest, Group* group) {
  float best = 0.0f, scale = largest / 15.0f;
  std::fill(std::begin(group->codes), std::end(group->codes), uint16_t{0});
  std::fill(std::begin(group->on_grid), std::end(group->on_grid), !search.refit_all);
  for (int step = -search.steps; step <= search.steps; ++step) {
    const float multiplier = (15.0f + static_cast<float>(step) * 0.2f) / largest;
    uint16_t codes[kIq3Quads];
    bool on_grid[kIq3Quads];
    for (size_t k = 0; k < kIq3Quads; ++k) {
      codes[k] = NearestPoint(grid, *group, k, multiplier, 1.0f / multiplier, &on_grid[k]);
    }
    float sum_xq, sum_q2;
    Sums(*group, codes, &sum_xq, &sum_q2);
    if (!(sum_q2 > 0.0f && sum_xq * sum_xq > best * sum_q2)) continue;
    scale = sum_xq / sum_q2;
    best = scale * sum_xq;
    std::copy(codes, codes + kIq3Quads, group->codes);
    std::copy(on_grid, on_grid + kIq3Quads, group->on_grid);
  }
  const bool all_on_grid =
      std::all_of(std::begin(group->on_grid), std::end(group->on_grid), [](bool on) { return on; });
  if (all_on_grid || !(scale > 0.0f)) return scale;
  for (size_t k = 0; k < kIq3Quads; ++k) {
    bool on_grid;
    if (!search.refit_all && group->on_grid[k]) continue;
    group->codes[k] = NearestPoint(grid, *group, k, 1.0f / scale, scale, &on_grid);
  }
  float sum_xq, sum_q2;
  Sums(*group, group->codes, &sum_xq, &sum_q2);
  return sum_q2 > 0.0f ? sum_xq / sum_q2 : scale;
}

}  // namespace

void Iq3Reference(const Iq3Search& search, const Grid& grid, const float* x, const float* importance, Iq3Block* block) {
  *block = {};
  float sum_x2 = 0.0f, scales[kIq3Groups];
  for (size_t i = 0; i < 256; ++i) sum_x2 += x[i] * x[i];
  const float variance = 2 * sum_x2 / 256;
  for (size_t j = 0; j < kIq3Groups; ++j, x += kIq3Group) {
    Group group;
    for (size_t i = 0; i < kIq3Group; ++i) {
      const float x2 = x[i] * x[i];
      group.w[i] = importance ? importance[j * kIq3Group + i] * std::sqrt(variance + x2) : x2;
      group.root_w[i] = std::sqrt(group.w[i]);
    }
    SplitSigns(search.even_signs, x, &group);
    float largest = group.x[0];
    for (const float xi : group.x) largest = largest > xi ? largest : xi;
    scales[j] = 0.0f;
    block->zero[j] = largest == 0.0f || largest < search.negligible;
    if (block->zero[j]) continue;
    scales[j] = Fit(search, grid, largest, &group);
    const uint8_t flip = scales[j] < 0.0f ? (search.even_signs ? 127 : 255) : 0;
    scales[j] = std::fabs(scales[j]);
    for (size_t k = 0; k < 4; ++k) block->signs[4 * j + k] = group.signs[k] ^ flip;
    for (size_t k = 0; k < kIq3Quads; ++k) {
      block->points[kIq3Quads * j + k] = static_cast<uint16_t>(grid.Index(group.codes[k]));
    }
  }
  Iq3StoreScales(search, scales, block);
}

void Iq3StoreScales(const Iq3Search& search, const float* scales, Iq3Block* block) {
  float largest = 0.0f;
  for (size_t j = 0; j < kIq3Groups; ++j) largest = largest > scales[j] ? largest : scales[j];
  if (largest == 0.0f) {
    // If all scales are zero, IQ3_S keeps points and signs.
    if (search.even_signs) *block = {};
    return;
  }
  const float d = largest / 31.0f, multiplier = 1.0f / d;
  block->d = d * search.factor;
  for (size_t j = 0; j < kIq3Groups; ++j) {
    block->scales[j] = static_cast<uint8_t>(reference::NearestCode(0.5f * (multiplier * scales[j] - 1.0f), 0, 15));
  }
}

}  // namespace lowbit
