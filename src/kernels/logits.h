// Searches in the logits of a vocabulary. NaN and infinities are skipped everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Logits per maximum of BlockMaxima.
inline constexpr size_t kLogitBlock = 64;

// out[b] = the largest finite logit of block b, or -infinity. The last block may be shorter.
void BlockMaxima(const float* logits, size_t num, float* out);

// The sum of exp((logit - max) / temperature) over all finite logits. max: the largest of them. The order
// of the sum depends on the target. The relative error is below num * 2^-53 + 1e-12.
double SumExp(const float* logits, size_t num, float max, float temperature);

// Writes the ids of all finite logits of at least `threshold`, in ascending order, and returns their number. `ids` has
// room for num + kLogitBlock.
size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids);

}  // namespace lowbit
