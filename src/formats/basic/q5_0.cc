// Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.
//
//   byte 0-1    d            float16
//   byte 2-5    fifth[4]     bit i, starting at the lowest bit of the first byte: bit 4 of code i
//   byte 6-21   nibbles[16]  byte j: bits 0-3 of code j in bits 0-3, of code j + 16 in bits 4-7
//
//   w[i] = d * (code[i] - 16)
//
// Source: ggml-common.h (block_q5_0), quantize_row_q5_0_ref, quantize_row_q5_0_impl, dequantize_row_q5_0.

// Fit: basic/block32-inl.h; without importances Plain, with importances Weighted and FitSymmetric in
//   search/search-inl.h.
// Packing: Block32::Pack in basic/block32-inl.h.
// Product: Block32::Unpack there, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q5_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q5_0 {

using Functions = Block32</*kBits=*/5, /*kAffine=*/false>;

}  // namespace q5_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q5_0::Functions, "Q5_0", /*ggml_type=*/6, /*block_size=*/32, /*block_bytes=*/22,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
