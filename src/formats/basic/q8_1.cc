// Q8_1: 32 weights in 36 bytes, 9 bits a weight.
//
//   byte 0-1   d      float16
//   byte 2-3   s      float16: d * (q[0] + ... + q[31]), which products with formats that have an offset use
//   byte 4-35  q[32]  int8
//
//   w[i] = d * q[i]
//
// ggml turns activations into it; nothing there decodes it. Importances are not used. Source: ggml-common.h
// (block_q8_1), quantize_row_q8_1_ref.

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
