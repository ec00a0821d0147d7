// Small operations between the matrix products. Each works on one row; callers split rows over threads.
#pragma once

#include <cstddef>

namespace lowbit {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. `out` may be `x`.
void RmsNorm(const float* x, const float* weight, size_t num, float eps, float* out);

// gate[i] = act(gate[i]) * up[i]; src/engine/spec.h defines the activations:
//
//   SwiGlu   silu
//   GeGlu    gelu_tanh, as g / (1 + exp(-2 u)), where u is the argument of tanh. This is the same number, without the
//            cancellation of 1 + tanh(u) near 0.
//   ReGlu2   relu2
void SwiGlu(float* gate, const float* up, size_t num);
void GeGlu(float* gate, const float* up, size_t num);
void ReGlu2(float* gate, const float* up, size_t num);

// x[i] += y[i].
void AddTo(float* x, const float* y, size_t num);

// x[i] *= factor.
void ScaleBy(float* x, float factor, size_t num);

// x[i] = cap * tanh(x[i] * scale / cap), cap > 0.
void SoftCap(float* x, float scale, float cap, size_t num);

// Rotates the first 2 * num_pairs values of a head by the angles whose cosines and sines are given. Pair i is
// (x[2i], x[2i + 1]) if `interleaved`, else (x[i], x[i + num_pairs]).
void Rope(float* head, const float* cos, const float* sin, size_t num_pairs, bool interleaved);

}  // namespace lowbit
