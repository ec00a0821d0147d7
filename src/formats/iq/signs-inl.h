// Signs of IQ2_XXS, IQ2_XS and IQ3_XXS: seven bits for eight weights. The number of minus signs is even, which gives
// the eighth.
#if defined(LOWBIT_FORMATS_IQ_SIGNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ_SIGNS_INL_H_
#undef LOWBIT_FORMATS_IQ_SIGNS_INL_H_
#else
#define LOWBIT_FORMATS_IQ_SIGNS_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// The eighth bit of each byte becomes the parity of its other seven, and must be zero before.
template <class DU, class VU = hn::Vec<DU>>
HWY_INLINE VU CompleteSigns(DU du, VU signs) {
  const hn::Repartition<uint8_t, DU> du8;
  const VU ones = hn::BitCast(du, hn::PopulationCount(hn::BitCast(du8, signs)));
  return hn::Or(signs, hn::And(hn::ShiftLeft<7>(ones), hn::BitCast(du, hn::Set(du8, 0x80))));
}

// The signs in bits 0-27 of each word, seven for each byte, and the eighth of each.
template <class DU, class VU = hn::Vec<DU>>
HWY_INLINE VU SpreadSigns(DU du, VU words) {
  const auto part = [&](VU bits, uint32_t mask) HWY_ATTR { return hn::And(bits, hn::Set(du, mask)); };
  const VU low = hn::Or(part(words, 0x7f), part(hn::ShiftLeft<1>(words), 0x7f00));
  const VU high = hn::Or(part(hn::ShiftLeft<2>(words), 0x7f0000), part(hn::ShiftLeft<3>(words), 0x7f000000));
  return CompleteSigns(du, hn::Or(low, high));
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ_SIGNS_INL_H_
