// Q5_1: 32 weights in 24 bytes, 6 bits per weight.
//
//   byte 0-1    d            float16
//   byte 2-3    m            float16
//   byte 4-7    fifth[4]     bit i, starting at the lowest bit of the first byte: bit 4 of code i
//   byte 8-23   nibbles[16]  byte j: bits 0-3 of code j in bits 0-3, of code j + 16 in bits 4-7
//
//   w[i] = d * code[i] + m
//
// Source: ggml-common.h (block_q5_1), quantize_row_q5_1_ref, quantize_row_q5_1_impl, dequantize_row_q5_1.

// Fit: basic/block32-inl.h; without importances Plain, with importances Weighted and FitAffine in search/affine-inl.h.
// Packing: Block32::Pack in basic/block32-inl.h.
// Product: Block32::Unpack there, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q5_1.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q5_1 {

using Functions = Block32</*kBits=*/5, /*kAffine=*/true>;

}  // namespace q5_1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q5_1::Functions, "Q5_1", /*ggml_type=*/7, /*block_size=*/32, /*block_bytes=*/24,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
