// Q8_1: 32 weights in 36 bytes, 9 bits per weight.
//
//   byte 0-1   d      float16
//   byte 2-3   s      float16: d * (q[0] + ... + q[31]), used in products with formats that have an offset
//   byte 4-35  q[32]  int8
//
//   w[i] = d * q[i]
//
// ggml's format for activations; ggml has no decoder for it. Importances are not used.
// Source: ggml-common.h (block_q8_1), quantize_row_q8_1_ref.

// Fit and packing: Block8::EncodeBlock in basic/block8-inl.h, RoundBlock in block-inl.h.
// Product: Block8::Unpack in basic/block8-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q8_1.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q8_1 {

using Functions = BlockFormat<Block8</*kHasSum=*/true>>;

}  // namespace q8_1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q8_1::Functions, "Q8_1", /*ggml_type=*/9, /*block_size=*/32, /*block_bytes=*/36,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
