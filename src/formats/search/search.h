// The searches for scales and codes that ggml's quantizers share, for one group of weights. They specify search-inl.h,
// which fits many groups at once. The order of float operations is part of the format: sums run from the first weight
// to the last, a * b * c is (a * b) * c, and nothing is fused.
//
// Sources: ggml-quants.c, nearest_int, make_qx_quants, make_q3_quants, make_qkx2_quants and make_qkx3_quants (identical
// for finite weights), make_qp_quants.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lowbit {

// Groups whose largest magnitude is below this count as zero.
constexpr float kNegligible = 1e-15f;

// For |x| < 2^22, adding 1.5 * 2^23 leaves the nearest integer (ties to even) in the low bits of the mantissa.
constexpr float kRoundingBias = 12582912.0f;
constexpr int32_t kMantissaMask = 0x007fffff;
constexpr int32_t kMantissaBias = 0x00400000;

// Multipliers to try: (first + step * i + the largest code) / range of the weights, for i in [0, last].
struct AffineGrid {
  float first;
  float step;
  int last;
};

namespace reference {

// Accepts any x: infinity or a large number gives some integer, NaN gives 0. Encoders meet these if a product
// overflows, and the bytes must still be ggml's.
inline int NearestInt(float x) {
  const float biased = x + kRoundingBias;
  int32_t bits;
  std::memcpy(&bits, &biased, sizeof(bits));
  return (bits & kMantissaMask) - kMantissaBias;
}

inline int NearestCode(float x, int low, int high) { return std::max(low, std::min(high, NearestInt(x))); }

// The weight of largest magnitude, the first of equals.
inline float Extreme(size_t num, const float* x) {
  float extreme = 0.0f, magnitude = 0.0f;
  for (size_t i = 0; i < num; ++i) {
    if (std::fabs(x[i]) > magnitude) {
      magnitude = std::fabs(x[i]);
      extreme = x[i];
    }
  }
  return extreme;
}

// Minimises sum w * (x - scale * level)^2 with levels in [-half, half); code = level + half, but 0 in a group of zeros.
inline float FitSymmetric(size_t num, int half, const float* x, const float* w, uint8_t* codes) {
  const float extreme = Extreme(num, x);
  if (std::fabs(extreme) < kNegligible) {
    std::fill(codes, codes + num, uint8_t{0});
    return 0.0f;
  }
  float scale = 0.0f, best = 0.0f;
  bool have = false;
  // The plain multiplier comes first, then the grid around it.
  for (int i = -10; i <= 9; ++i) {
    if (i == 0) continue;
    const float multiplier = i == -10 ? -half / extreme : -(half + 0.1f * i) / extreme;
    float sum_xl = 0.0f, sum_l2 = 0.0f;
    for (size_t k = 0; k < num; ++k) {
      const int level = NearestCode(multiplier * x[k], -half, half - 1);
      sum_xl += w[k] * x[k] * level;
      sum_l2 += w[k] * level * level;
    }
    if (have && !(sum_l2 > 0.0f && sum_xl * sum_xl > best * sum_l2)) continue;
    have = true;
    scale = sum_l2 != 0.0f ? sum_xl / sum_l2 : 0.0f;
    best = scale * sum_xl;
    for (size_t k = 0; k < num; ++k) {
      codes[k] = static_cast<uint8_t>(half + NearestCode(multiplier * x[k], -half, half - 1));
    }
  }
  return scale;
}

// Like FitSymmetric with w = x^2, but improves one level at a time.
inline float FitByDescent(size_t num, int half, const float* x, uint8_t* codes) {
  const float extreme = Extreme(num, x);
  if (std::fabs(extreme) < kNegligible) {
    std::fill(codes, codes + num, uint8_t{0});
    return 0.0f;
  }
  const float multiplier = -half / extreme;
  float sum_xl = 0.0f, sum_l2 = 0.0f;
  for (size_t k = 0; k < num; ++k) {
    const int level = NearestCode(multiplier * x[k], -half, half - 1);
    const float w = x[k] * x[k];
    sum_xl += w * x[k] * level;
    sum_l2 += w * level * level;
    codes[k] = static_cast<uint8_t>(level + half);
  }
  bool changed = true;
  for (int round = 0; round < 5 && changed; ++round) {
    changed = false;
    for (size_t k = 0; k < num; ++k) {
      const int level = codes[k] - half;
      const float w = x[k] * x[k];
      float xl = sum_xl - w * x[k] * level;
      if (!(xl > 0.0f)) continue;
      float l2 = sum_l2 - w * level * level;
      const int better = NearestCode(x[k] * l2 / xl, -half, half - 1);
      if (better == level) continue;
      xl += w * x[k] * better;
      l2 += w * better * better;
      if (l2 > 0.0f && xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
        codes[k] = static_cast<uint8_t>(better + half);
        sum_xl = xl;
        sum_l2 = l2;
        changed = true;
      }
    }
  }
  return sum_l2 > 0.0f ? sum_xl / sum_l2 : 0.0f;
}

// The error of x = scale * code + base: sum w * |difference|, or its square.
inline float AffineError(size_t num, bool absolute, const float* x, const float* w, const uint8_t* codes, float scale,
                         float base) {
  float error = 0.0f;
  for (size_t k = 0; k < num; ++k) {
    const float difference = scale * codes[k] + base - x[k];
    error += w[k] * (absolute ? std::fabs(difference) : difference * difference);
  }
  return error;
}

// Minimises the error of x = scale * code - minimum, with codes in [0, top] and minimum >= 0. Returns the scale. Each
// improvement moves the base of the next codes.
inline float FitAffine(size_t num, int top, AffineGrid grid, bool absolute, const float* x, const float* w,
                       uint8_t* codes, float* minimum) {
  float low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
  for (size_t k = 1; k < num; ++k) {
    if (x[k] < low) low = x[k];
    if (x[k] > high) high = x[k];
    sum_w += w[k];
    sum_x += w[k] * x[k];
  }
  float base = low > 0.0f ? 0.0f : low;
  *minimum = -base;
  std::fill(codes, codes + num, uint8_t{0});
  if (high == base) return 0.0f;

  const float plain = top / (high - base);
  float scale = 1.0f / plain;
  for (size_t k = 0; k < num; ++k) codes[k] = static_cast<uint8_t>(NearestCode(plain * (x[k] - base), 0, top));
  float best = AffineError(num, absolute, x, w, codes, scale, base);
  uint8_t trial[32];
  for (int i = 0; i <= grid.last; ++i) {
    const float multiplier = (grid.first + grid.step * i + top) / (high - base);
    float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
    for (size_t k = 0; k < num; ++k) {
      const int level = NearestCode(multiplier * (x[k] - base), 0, top);
      trial[k] = static_cast<uint8_t>(level);
      sum_l += w[k] * level;
      sum_l2 += w[k] * level * level;
      sum_xl += w[k] * level * x[k];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0.0f)) continue;
    float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float this_base = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (this_base > 0.0f) {
      this_base = 0.0f;
      this_scale = sum_xl / sum_l2;
    }
    const float error = AffineError(num, absolute, x, w, trial, this_scale, this_base);
    if (error < best) {
      best = error;
      scale = this_scale;
      base = this_base;
      *minimum = -base;
      std::copy(trial, trial + num, codes);
    }
  }
  return scale;
}

// Codes for the scales of a super-block: minimises sum w * (x - scale * code)^2 with codes <= top, and at the end
// improves one code at a time. Rounding errors can make x negative; its code then wraps around.
inline float FitPositive(size_t num, int top, const float* x, const float* w, uint8_t* codes) {
  float high = 0.0f;
  for (size_t k = 0; k < num; ++k) high = high > x[k] ? high : x[k];
  std::fill(codes, codes + num, uint8_t{0});
  if (high < kNegligible) return 0.0f;

  float best_multiplier = 0.0f, best = 0.0f;
  for (int i = -5; i <= 4; ++i) {
    if (i == 0) continue;
    const bool plain = i == -5;
    const float multiplier = plain ? top / high : (0.1f * i + top) / high;
    const float scale = 1.0f / multiplier;
    float error = 0.0f;
    for (size_t k = 0; k < num; ++k) {
      const int level = NearestInt(multiplier * x[k]);
      const float difference = x[k] - scale * (plain ? static_cast<uint8_t>(level) : std::min(top, level));
      error += w[k] * difference * difference;
    }
    if (plain || error < best) {
      best = error;
      best_multiplier = multiplier;
    }
  }
  float sum_xl = 0.0f, sum_l2 = 0.0f;
  for (size_t k = 0; k < num; ++k) {
    const int level = std::min(top, NearestInt(best_multiplier * x[k]));
    codes[k] = static_cast<uint8_t>(level);
    sum_xl += w[k] * x[k] * level;
    sum_l2 += w[k] * level * level;
  }
  bool changed = true;
  for (int round = 0; round < 5 && changed; ++round) {
    changed = false;
    for (size_t k = 0; k < num; ++k) {
      float xl = sum_xl - w[k] * x[k] * codes[k];
      float l2 = sum_l2 - w[k] * codes[k] * codes[k];
      if (!(xl > 0.0f && l2 > 0.0f)) continue;
      const int better = std::min(top, NearestInt(x[k] * l2 / xl));
      if (better == codes[k]) continue;
      xl += w[k] * x[k] * better;
      l2 += w[k] * better * better;
      if (xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
        codes[k] = static_cast<uint8_t>(better);
        sum_xl = xl;
        sum_l2 = l2;
        changed = true;
      }
    }
  }
  return sum_l2 > 0.0f ? sum_xl / sum_l2 : 0.0f;
}

}  // namespace reference
}  // namespace lowbit
