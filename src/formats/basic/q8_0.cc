// Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
//
//   byte 0-1   d      float16
//   byte 2-33  q[32]  int8
//
//   w[i] = d * q[i]
//
// Importances are not used. Source: ggml-common.h (block_q8_0), quantize_row_q8_0_ref.

// Fit and packing: Block8::EncodeBlock in basic/block8-inl.h, RoundBlock in block-inl.h.
// Product: Block8::Unpack in basic/block8-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q8_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/basic/block8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q8_0 {

using Functions = BlockFormat<Block8</*kHasSum=*/false>>;

}  // namespace q8_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q8_0::Functions, "Q8_0", /*ggml_type=*/8, /*block_size=*/32, /*block_bytes=*/34,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
