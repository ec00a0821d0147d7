#include "src/kernels/elementwise.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/elementwise.cc"
// clang-format off
#include "hwy/foreach_target.h"  // must come before the others
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

// Calls body(i, load, store) for all lanes of [0, num). load and store access the existing lanes from i on.
template <class Body>
HWY_INLINE void ForEachVector(size_t num, Body body) {
  const DF df;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) {
    body([&](const float* p) HWY_ATTR { return hn::LoadU(df, p + i); },
         [&](VF v, float* p) HWY_ATTR { hn::StoreU(v, df, p + i); });
  }
  if (i < num) {
    body([&](const float* p) HWY_ATTR { return hn::LoadN(df, p + i, num - i); },
         [&](VF v, float* p) HWY_ATTR { hn::StoreN(v, df, p + i, num - i); });
  }
}

void RmsNorm(const float* x, const float* weight, size_t num, float eps, float* out) {
  const DF df;
  VF squares = hn::Zero(df);
  ForEachVector(num, [&](auto load, auto) HWY_ATTR {
    const VF v = load(x);
    squares = hn::MulAdd(v, v, squares);
  });
  const float mean = hn::ReduceSum(df, squares) / static_cast<float>(num);
  const VF scale = hn::Set(df, 1.0f / std::sqrt(mean + eps));
  ForEachVector(num,
                [&](auto load, auto store) HWY_ATTR { store(hn::Mul(hn::Mul(load(x), scale), load(weight)), out); });
}

// x / (1 + exp(-t))
HWY_INLINE VF TimesSigmoid(VF x, VF t) {
  const DF df;
  // Highway's Exp is right up to 104, where the result is infinite in float. Above 178 it would return 0.
  const VF exp = hn::Exp(df, hn::Min(hn::Neg(t), hn::Set(df, 104.0f)));
  return hn::Div(x, hn::Add(hn::Set(df, 1.0f), exp));
}

void SwiGlu(float* gate, const float* up, size_t num) {
  ForEachVector(num, [&](auto load, auto store) HWY_ATTR {
    const VF g = load(gate);
    store(hn::Mul(TimesSigmoid(g, g), load(up)), gate);
  });
}

void GeGlu(float* gate, const float* up, size_t num) {
  const DF df;
  const VF a = hn::Set(df, 1.5957691216f), b = hn::Set(df, 0.0713548163f);  // 2 sqrt(2 / pi), and that times 0.044715
  ForEachVector(num, [&](auto load, auto store) HWY_ATTR {
    const VF g = load(gate);
    const VF twice_u = hn::Mul(g, hn::MulAdd(hn::Mul(g, g), b, a));
    store(hn::Mul(TimesSigmoid(g, twice_u), load(up)), gate);
  });
}

void ReGlu2(float* gate, const float* up, size_t num) {
  ForEachVector(num, [&](auto load, auto store) HWY_ATTR {
    const VF g = load(gate);
    const VF positive = hn::IfThenElse(hn::Lt(g, hn::Zero(DF())), hn::Zero(DF()), g);  // unlike Max, keeps NaN
    store(hn::Mul(hn::Mul(positive, positive), load(up)), gate);
  });
}

void AddTo(float* x, const float* y, size_t num) {
  ForEachVector(num, [&](auto load, auto store) HWY_ATTR { store(hn::Add(load(x), load(y)), x); });
}

void ScaleBy(float* x, float factor, size_t num) {
  const VF f = hn::Set(DF(), factor);
  ForEachVector(num, [&](auto load, auto store) HWY_ATTR { store(hn::Mul(load(x), f), x); });
}

void SoftCap(float* x, float scale, float cap, size_t num) {
  const DF df;
  const VF factor = hn::Set(df, scale / cap), most = hn::Set(df, cap);
  ForEachVector(
      num, [&](auto load, auto store) HWY_ATTR { store(hn::Mul(most, hn::Tanh(df, hn::Mul(load(x), factor))), x); });
}

void Rope(float* head, const float* cos, const float* sin, size_t num_pairs, bool interleaved) {
  const DF df;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num_pairs; i += N) {
    const VF c = hn::LoadU(df, cos + i), s = hn::LoadU(df, sin + i);
    VF a, b;
    if (interleaved) {
      hn::LoadInterleaved2(df, head + 2 * i, a, b);
    } else {
      a = hn::LoadU(df, head + i);
      b = hn::LoadU(df, head + num_pairs + i);
    }
    const VF rotated_a = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
    const VF rotated_b = hn::Add(hn::Mul(a, s), hn::Mul(b, c));
    if (interleaved) {
      hn::StoreInterleaved2(rotated_a, rotated_b, df, head + 2 * i);
    } else {
      hn::StoreU(rotated_a, df, head + i);
      hn::StoreU(rotated_b, df, head + num_pairs + i);
    }
  }
  for (; i < num_pairs; ++i) {
    float* pa = interleaved ? head + 2 * i : head + i;
    float* pb = interleaved ? head + 2 * i + 1 : head + num_pairs + i;
    const float a = *pa, b = *pb;
    *pa = a * cos[i] - b * sin[i];
    *pb = a * sin[i] + b * cos[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(RmsNorm);
HWY_EXPORT(SwiGlu);
HWY_EXPORT(GeGlu);
HWY_EXPORT(ReGlu2);
HWY_EXPORT(AddTo);
HWY_EXPORT(ScaleBy);
HWY_EXPORT(SoftCap);
HWY_EXPORT(Rope);

void RmsNorm(const float* x, const float* weight, size_t num, float eps, float* out) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, num, eps, out);
}

void SwiGlu(float* gate, const float* up, size_t num) { HWY_DYNAMIC_DISPATCH(SwiGlu)(gate, up, num); }

void GeGlu(float* gate, const float* up, size_t num) { HWY_DYNAMIC_DISPATCH(GeGlu)(gate, up, num); }

void ReGlu2(float* gate, const float* up, size_t num) { HWY_DYNAMIC_DISPATCH(ReGlu2)(gate, up, num); }

void ScaleBy(float* x, float factor, size_t num) { HWY_DYNAMIC_DISPATCH(ScaleBy)(x, factor, num); }

void SoftCap(float* x, float scale, float cap, size_t num) { HWY_DYNAMIC_DISPATCH(SoftCap)(x, scale, cap, num); }

void AddTo(float* x, const float* y, size_t num) { HWY_DYNAMIC_DISPATCH(AddTo)(x, y, num); }

void Rope(float* head, const float* cos, const float* sin, size_t num_pairs, bool interleaved) {
  HWY_DYNAMIC_DISPATCH(Rope)(head, cos, sin, num_pairs, interleaved);
}

}  // namespace lowbit
#endif  // HWY_ONCE
