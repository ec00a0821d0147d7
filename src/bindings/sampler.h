// A Sampler of the Python module.
#pragma once

#include <vector>

#include "src/engine/sample.h"

namespace lowbit {

struct StepSampler : Sampler {
  using Sampler::Sampler;

  std::vector<float> logits;  // of the last step; kept, because new memory is slow
};

}  // namespace lowbit
