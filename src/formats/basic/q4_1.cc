// Q4_1: 32 weights in 20 bytes, 5 bits per weight.
//
//   byte 0-1    d            float16
//   byte 2-3    m            float16
//   byte 4-19   nibbles[16]  byte j: code j in bits 0-3, code j + 16 in bits 4-7
//
//   w[i] = d * code[i] + m
//
// Source: ggml-common.h (block_q4_1), quantize_row_q4_1_ref, quantize_row_q4_1_impl, dequantize_row_q4_1.

// Fit: basic/block32-inl.h; without importances Plain, with importances Weighted and FitAffine in search/affine-inl.h.
// Packing: Block32::Pack in basic/block32-inl.h.
// Product: Block32::Unpack there, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q4_1.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q4_1 {

using Functions = Block32</*kBits=*/4, /*kAffine=*/true>;

}  // namespace q4_1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q4_1::Functions, "Q4_1", /*ggml_type=*/3, /*block_size=*/32, /*block_bytes=*/20,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
