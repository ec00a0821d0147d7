// The search of IQ1_S and IQ1_M for the best split of a group into three levels. Lane = group.
//
// The reference sorts the weights of a group and scores every split of them, with every choice of shifts. The split
// with the least weighted error has the largest score (sum w x q)^2 / sum w q^2. A candidate is taken if its rounded
// score exceeds that of the previous one, so the last bits of near ties depend on the order of the candidates. This
// code finds the same split with less work:
//
//   1. StartScore finds a good split in each lane, with a tenth of the work. The search then starts with kStart times
//      its score instead of -FLT_MAX. The result is the same: until the reference meets the best candidate, its score
//      exceeds the start only by rounding errors, a few ulps for each of at most 1122 candidates, together below 4e-4.
//      So both take the best candidate, or one before it within these bounds, and are equal from there on.
//   2. Scores are compared in a cheaper form, whose error is below 1 - kSlack. All sums start at the lowest weight, so
//      sum w x q = (a sum over all) - sum_x[first] - sum_x[second]; sum w q^2 is as simple. If some lane may have a
//      better candidate, all lanes compute the reference's sums and compare these.
//
//      The error: let S = sum w |x| and W = sum w. The two forms of sum w x q differ by at most 8 roundings of S, those
//      of sum w q^2 by 8 roundings of W. sum w q^2 is at least W / 64, so its error is 3e-5. Let b be the score to
//      beat. A candidate that could beat it has sum w x q >= sqrt(b W / 64). If S^2 <= 8 b W (normally distributed
//      weights have about 0.8 b W), 8 roundings of S are 1.1e-5 of that, and 2.2e-5 of the square. By the same count
//      StartScore, with about 40 roundings, has an error below 3e-4. If S^2 is larger, or if products of the sums leave
//      the range of normal numbers, only the reference's form is used.
#if defined(LOWBIT_FORMATS_IQ1_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ1_SPLIT_INL_H_
#undef LOWBIT_FORMATS_IQ1_SPLIT_INL_H_
#else
#define LOWBIT_FORMATS_IQ1_SPLIT_INL_H_
#endif

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <utility>

#include "hwy/highway.h"
#include "src/formats/iq/iq1.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq1 {

using VF = hn::Vec<SearchTag>;
using VI = hn::Vec<hn::RebindToSigned<SearchTag>>;
using MF = hn::Mask<SearchTag>;

// ------------------------------------------------------------------------------------------------------------ sorting
// The weights of a lane are sorted by value, equal ones by index, like the reference's stable sort. A key is the weight
// as a double, whose lowest 29 bits are free. They get the index (its complement for negative weights, because a larger
// mantissa makes these smaller). So all keys differ, a minimum and a maximum exchange two of them, and a fixed sorting
// network sorts a group in each lane. Zeros become a number below all others, because flushed denormals would lose
// their index.

using KeyTag = hn::Repartition<double, SearchTag>;
using VK = hn::Vec<KeyTag>;

constexpr double kZeroKey = 0x1p-1000;

// Batcher's odd-even merge sort: 63 exchanges for 16 keys, 191 for 32.
template <size_t kNum>
struct SortingNetwork {
  size_t num = 0;
  uint8_t low[kNum * 6] = {}, high[kNum * 6] = {};

  constexpr SortingNetwork() {
    for (size_t p = 1; p < kNum; p *= 2) {
      for (size_t k = p; k >= 1; k /= 2) {
        for (size_t j = k % p; j + k < kNum; j += 2 * k) {
          for (size_t i = j; i < j + k && i + k < kNum; ++i) {
            if (i / (2 * p) != (i + k) / (2 * p)) continue;
            low[num] = static_cast<uint8_t>(i);
            high[num] = static_cast<uint8_t>(i + k);
            ++num;
          }
        }
      }
    }
  }
};

template <size_t kNum>
inline constexpr SortingNetwork<kNum> kSortingNetwork;

HWY_INLINE void Exchange(VK& low, VK& high) {
  const VK smaller = hn::Min(low, high);
  high = hn::Max(low, high);
  low = smaller;
}

template <size_t kNum, size_t... kStep>
HWY_INLINE void ApplyNetwork(VK* keys, std::index_sequence<kStep...> /*steps*/) {
  (Exchange(keys[kSortingNetwork<kNum>.low[kStep]], keys[kSortingNetwork<kNum>.high[kStep]]), ...);
}

HWY_INLINE VK MakeKey(KeyTag dk, VK x, int64_t place, int64_t last) {
  const hn::RebindToSigned<KeyTag> di;
  x = hn::IfThenElse(hn::Eq(x, hn::Zero(dk)), hn::Set(dk, kZeroKey), x);
  const auto bits = hn::BitCast(di, x);
  const auto flip = hn::And(hn::BroadcastSignBit(bits), hn::Set(di, last));
  return hn::BitCast(dk, hn::Or(bits, hn::Xor(hn::Set(di, place), flip)));
}

// keys[i * N + lane] of x[i * N + lane], and the same in ascending order.
template <size_t kNum>
HWY_NOINLINE void Sort(const float* HWY_RESTRICT x, double* HWY_RESTRICT keys, double* HWY_RESTRICT sorted) {
  const SearchTag df;
  const KeyTag dk;
  const size_t N = hn::Lanes(df), half = hn::Lanes(dk);
  for (size_t i = 0; i < kNum; ++i) {
    const VF xi = hn::Load(df, x + i * N);
    const int64_t place = static_cast<int64_t>(i), last = kNum - 1;
    hn::Store(MakeKey(dk, hn::PromoteLowerTo(dk, xi), place, last), dk, keys + i * N);
    hn::Store(MakeKey(dk, hn::PromoteUpperTo(dk, xi), place, last), dk, keys + i * N + half);
  }
  for (size_t lane = 0; lane < N; lane += half) {
    VK v[kNum];
    for (size_t i = 0; i < kNum; ++i) v[i] = hn::Load(dk, keys + i * N + lane);
    ApplyNetwork<kNum>(v, std::make_index_sequence<kSortingNetwork<kNum>.num>());
    for (size_t i = 0; i < kNum; ++i) hn::Store(v[i], dk, sorted + i * N + lane);
  }
}

// The indices of N sorted keys.
HWY_INLINE VI Places(const double* sorted, int64_t last) {
  const hn::RebindToSigned<SearchTag> di;
  const hn::RebindToUnsigned<SearchTag> du;
  const KeyTag dk;
  const hn::RebindToSigned<KeyTag> di64;
  const hn::RebindToUnsigned<KeyTag> du64;
  const auto place = [&](const double* from) HWY_ATTR {
    const auto bits = hn::BitCast(di64, hn::Load(dk, from));
    const auto mask = hn::Set(di64, last);
    return hn::BitCast(du64, hn::And(hn::Xor(bits, hn::BroadcastSignBit(bits)), mask));
  };
  return hn::BitCast(di, hn::OrderedTruncate2To(du, place(sorted), place(sorted + hn::Lanes(dk))));
}

// The weights of N sorted keys.
HWY_INLINE VF Values(const double* sorted) {
  const SearchTag df;
  const KeyTag dk;
  const hn::Half<SearchTag> dh;
  const auto low = hn::DemoteTo(dh, hn::Load(dk, sorted));
  return hn::Combine(df, hn::DemoteTo(dh, hn::Load(dk, sorted + hn::Lanes(dk))), low);
}

// -------------------------------------------------------------------------------------------------------------- splits

constexpr float kStart = 0.999f, kSlack = 0.9999f;

// The best split of each lane: kind + 4 * (second + 64 * first), or -1.
struct Splits {
  VF best, guard, scale;
  VI at;

  explicit HWY_INLINE Splits(VF start) : best(start), scale(hn::Zero(SearchTag())), at(Ids(-1)) { SetGuard(); }

  static HWY_INLINE VI Ids(int id) { return hn::Set(hn::RebindToSigned<SearchTag>(), id); }

  static HWY_INLINE VI Pack(size_t first, size_t second, int kind) {
    return Ids(static_cast<int>((first * 64 + second) * 4) + kind);
  }

  HWY_INLINE void SetGuard() { guard = hn::Mul(best, hn::Set(SearchTag(), kSlack)); }

  // Whether a lane may take a candidate, by the cheaper form of the sums.
  HWY_INLINE MF Near(VF sum_xq, VF sum_q2) const { return hn::Gt(hn::Mul(sum_xq, sum_xq), hn::Mul(guard, sum_q2)); }

  // Takes a candidate by the reference's sums. The reference also requires sum_q2 > 0. This holds if the sum of weights
  // exceeds kLeastWeight; other lanes start with infinity.
  HWY_INLINE void Take(VF sum_xq, VF sum_q2, VI id) {
    const hn::RebindToSigned<SearchTag> di;
    const auto better = hn::Gt(hn::Mul(sum_xq, sum_xq), hn::Mul(best, sum_q2));
    const VF this_scale = hn::Div(sum_xq, sum_q2);
    scale = hn::IfThenElse(better, this_scale, scale);
    best = hn::IfThenElse(better, hn::Mul(this_scale, sum_xq), best);
    at = hn::IfThenElse(hn::RebindMask(di, better), id, at);
    SetGuard();
  }
};

constexpr float kLeastWeight = 0x1p-100f;

// The start of a search, and whether the cheaper form of sums is sufficient.
struct Start {
  VF score;
  uint64_t unsure;  // a bit for each lane that needs the reference
  bool near;
};

constexpr float Square(float v) { return v * v; }

// The change of q^2 from a level below `first`, and from one below `second`.
constexpr float FirstStep(bool down) { return Square(Iq1Value(0, down)) - Square(Iq1Value(1, down)); }
constexpr float SecondStep(bool down) { return Square(Iq1Value(1, down)) - Square(Iq1Value(2, down)); }

// Sums over kHalves parts of a group, each with its own shift.
template <size_t kHalves>
struct PartSums {
  HWY_INLINE PartSums() {}  // see AffineSearch (src/formats/search/affine-inl.h)

  VF all_x[kHalves], all_w[kHalves];                       // over all weights
  VF low_x[kHalves], first_w[kHalves], second_w[kHalves];  // below both ends of a split together, below either

  // Returns the score of a split with shifts `kind`, and its scale.
  HWY_INLINE VF Score(int kind, VF& scale) const {
    const SearchTag df;
    VF xq = hn::Zero(df), q2 = xq;
    for (size_t half = 0; half < kHalves; ++half) {
      const bool down = (kind >> (kHalves - 1 - half) & 1) != 0;
      const VF top = hn::Set(df, Iq1Value(2, down));
      xq = hn::Add(xq, hn::Sub(hn::Mul(all_x[half], top), low_x[half]));
      q2 = hn::Add(q2, hn::Mul(hn::Mul(all_w[half], top), top));
      q2 = hn::Add(q2, hn::Mul(first_w[half], hn::Set(df, FirstStep(down))));
      q2 = hn::Add(q2, hn::Mul(second_w[half], hn::Set(df, SecondStep(down))));
    }
    scale = hn::Div(xq, q2);
    return hn::Mul(scale, xq);
  }
};

// Lanes whose weights are negligible start with infinity, so they find no split.
HWY_INLINE Start MakeStart(SearchTag df, VF score, VF weight, VF magnitude, MF negligible) {
  const VF least = hn::Set(df, 0x1p-50f), most = hn::Set(df, 0x1p50f);
  const MF light = hn::Not(hn::Ge(weight, hn::Set(df, kLeastWeight)));
  const MF dead = hn::Or(negligible, light);
  const auto in_range = [&](VF v) HWY_ATTR { return hn::And(hn::Gt(v, least), hn::Lt(v, most)); };
  const VF bound = hn::Mul(hn::Mul(score, weight), hn::Set(df, 8.0f));
  const MF fits = hn::And(hn::And(in_range(score), in_range(weight)), hn::Le(hn::Mul(magnitude, magnitude), bound));
  const VF plain = hn::IfThenElse(fits, hn::Mul(score, hn::Set(df, kStart)), hn::Set(df, -FLT_MAX));
  const MF unsure = hn::AndNot(negligible, hn::And(light, hn::Not(hn::Eq(weight, hn::Zero(df)))));
  return {hn::IfThenElse(dead, hn::Inf(df), plain), hn::BitsFromMask(df, unsure), hn::AllTrue(df, hn::Or(fits, dead))};
}

// Splits at the middles between the levels of a scale, then refits the scale with the best shifts. Repeats this a few
// times with the thresholds of either shift. The result is only an estimate, so the order of sums has no effect.
template <size_t kNum, size_t kHalves>
HWY_NOINLINE Start StartScore(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w,
                              float negligible) {
  constexpr size_t kPart = kNum / kHalves;
  constexpr int kRounds = 2;
  const size_t N = hn::Lanes(df);
  const VF zero = hn::Zero(df);
  PartSums<kHalves> sums;
  VF magnitude = zero, weight = zero, largest = zero;
  for (size_t half = 0; half < kHalves; ++half) {
    sums.all_x[half] = sums.all_w[half] = zero;
    for (size_t i = half * kPart; i < (half + 1) * kPart; ++i) {
      const VF xi = hn::Load(df, x + i * N), wi = hn::Load(df, w + i * N), wx = hn::Mul(wi, xi);
      sums.all_x[half] = hn::Add(sums.all_x[half], wx);
      sums.all_w[half] = hn::Add(sums.all_w[half], wi);
      magnitude = hn::Add(magnitude, hn::Abs(wx));
      largest = hn::Max(largest, hn::Abs(xi));
    }
    weight = hn::Add(weight, sums.all_w[half]);
  }
  const VF first_scale = hn::Div(hn::Mul(magnitude, hn::Set(df, 1.5f)), weight);
  VF scales[2] = {first_scale, first_scale}, best = zero;
  for (int step = 0; step < 2 * kRounds; ++step) {
    const bool down = step % 2 != 0;
    VF& scale = scales[down];
    const VF first = hn::Mul(scale, hn::Set(df, 0.5f * (Iq1Value(0, down) + Iq1Value(1, down))));
    const VF second = hn::Mul(scale, hn::Set(df, 0.5f * (Iq1Value(1, down) + Iq1Value(2, down))));
    for (size_t half = 0; half < kHalves; ++half) {
      VF first_x = zero, second_x = zero, first_w = zero, second_w = zero;
      for (size_t i = half * kPart; i < (half + 1) * kPart; ++i) {
        const VF xi = hn::Load(df, x + i * N), wi = hn::Load(df, w + i * N), wx = hn::Mul(wi, xi);
        const MF below_first = hn::Lt(xi, first), below_second = hn::Lt(xi, second);
        first_x = hn::Add(first_x, hn::IfThenElseZero(below_first, wx));
        second_x = hn::Add(second_x, hn::IfThenElseZero(below_second, wx));
        first_w = hn::Add(first_w, hn::IfThenElseZero(below_first, wi));
        second_w = hn::Add(second_w, hn::IfThenElseZero(below_second, wi));
      }
      sums.low_x[half] = hn::Add(first_x, second_x);
      sums.first_w[half] = first_w;
      sums.second_w[half] = second_w;
    }
    VF step_best = zero, fitted;
    for (int kind = 0; kind < 2 << (kHalves - 1); ++kind) {
      const VF score = sums.Score(kind, fitted);
      const MF better = hn::And(hn::Gt(score, step_best), hn::Gt(fitted, zero));
      step_best = hn::IfThenElse(better, score, step_best);
      scale = hn::IfThenElse(better, fitted, scale);
    }
    best = hn::IfThenElse(hn::Gt(step_best, best), step_best, best);
  }
  return MakeStart(df, best, weight, magnitude, hn::Lt(largest, hn::Set(df, negligible)));
}

}  // namespace iq1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ1_SPLIT_INL_H_
