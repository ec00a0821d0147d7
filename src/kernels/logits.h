// Searches in the logits of a vocabulary. NaN and infinities are skipped everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Logits per maximum of BlockMaxima.
inline constexpr size_t kLogitBlock = 64;

// out[b] = the largest finite logit of block b, or -infinity. The last block may be shorter.
void BlockMaxima(const float* logits, size_t num, float* out);

// The weight of a logit is exp((logit - max) / temperature). max: the largest finite logit.
struct WeightScale {
  float max, temperature;
};

// The sum of all weights. The order of the sum depends on the target. The relative error is below num * 2^-53 + 1e-12.
double SumWeights(const float* logits, size_t num, WeightScale scale);

// Buckets divide the logits from `max` downwards: those of a bucket are above those of the next. The last one has the
// rest: weights below 1e-20, and logits whose distance overflows in float.
inline constexpr size_t kWeightBuckets = 2048;

// mass[b] = the sum of the weights in bucket b, which has the error of SumWeights.
void WeighBuckets(const float* logits, size_t num, WeightScale scale, double* mass);

// Writes the ids of the logits in a bucket, except the last, as FindAtLeast does.
size_t FindInBucket(const float* logits, size_t num, WeightScale scale, size_t bucket, int32_t* ids);

// Writes the ids of all finite logits of at least `threshold`, in ascending order, and returns their number. `ids` has
// room for num + kLogitBlock.
size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids);

}  // namespace lowbit
