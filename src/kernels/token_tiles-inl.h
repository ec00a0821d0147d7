// How tokens are divided into tiles that are multiplied together.
#if defined(LOWBIT_KERNELS_TOKEN_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_KERNELS_TOKEN_TILES_INL_H_
#undef LOWBIT_KERNELS_TOKEN_TILES_INL_H_
#else
#define LOWBIT_KERNELS_TOKEN_TILES_INL_H_
#endif

#include <stddef.h>

#include "hwy/highway.h"
#include "src/formats/activations.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// Tokens of the largest tile: as many as have sums in registers.
constexpr size_t kTileTokens = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM_A64 ? 6 : 2;

// The tile of token t: the largest as long as there are enough tokens, then of 4, 2 and 1.
HWY_INLINE TokenTile TileOfToken(size_t num_tokens, size_t t) {
  size_t first = num_tokens / kTileTokens * kTileTokens;
  if (t < first) return {t / kTileTokens * kTileTokens, kTileTokens};
  size_t num = 4;
  for (; num > 1; num /= 2) {
    if (num >= kTileTokens || first + num > num_tokens) continue;
    if (t < first + num) break;
    first += num;
  }
  return {first, num};
}

HWY_INLINE size_t NumTiles(size_t num_tokens) {
  return num_tokens / kTileTokens + hwy::PopCount(num_tokens % kTileTokens);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_KERNELS_TOKEN_TILES_INL_H_
