// F32: a weight in 4 bytes, 32 bits per weight.
//
//   byte 0-3   w   float32, little-endian
//
// Importances are not used.

// Fit: none, each weight is rounded alone.
// Packing: this file.
// Product: of floats, src/kernels/matmul.cc.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/float/f32.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace f32 {

void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
  hwy::CopyBytes(weights, out, num_rows * K * sizeof(float));
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  hwy::CopyBytes(blocks, out, num_blocks * sizeof(float));
}

}  // namespace f32
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FLOAT_FORMAT(f32, "F32", /*ggml_type=*/0, /*block_size=*/1, /*block_bytes=*/4, /*needs_imatrix=*/false)
#endif  // HWY_ONCE
