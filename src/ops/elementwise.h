// The small operations between the matrix products. All work on one row; callers split rows over threads.
#pragma once

#include <cstddef>

namespace lowbit {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. `out` may be `x`.
void RmsNorm(const float* x, const float* weight, size_t num, float eps, float* out);

// gate[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + exp(-g)).
void SwiGlu(float* gate, const float* up, size_t num);

// x[i] += y[i].
void AddTo(float* x, const float* y, size_t num);

// Rotates the first 2 * num_pairs values of a head by the angles whose cosines and sines are given. Pair i is
// (x[2i], x[2i + 1]) if `interleaved`, else (x[i], x[i + num_pairs]).
void Rope(float* head, const float* cos, const float* sin, size_t num_pairs, bool interleaved);

}  // namespace lowbit
