// Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.
//
//   byte 0-1    d            float16
//   byte 2-17   nibbles[16]  byte j: code j in bits 0-3, code j + 16 in bits 4-7
//
//   w[i] = d * (code[i] - 8)
//
// Source: ggml-common.h (block_q4_0), quantize_row_q4_0_ref, quantize_row_q4_0_impl, dequantize_row_q4_0.

// Fit: basic/block32-inl.h; without importances Plain, with importances Weighted and FitSymmetric in
//   search/search-inl.h.
// Packing: Block32::Pack in basic/block32-inl.h.
// Product: Block32::Unpack there, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q4_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block32-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q4_0 {

using Functions = Block32</*kBits=*/4, /*kAffine=*/false>;

}  // namespace q4_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q4_0::Functions, "Q4_0", /*ggml_type=*/2, /*block_size=*/32, /*block_bytes=*/18,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
