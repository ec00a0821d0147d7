// Times of the stages of a step.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

namespace lowbit {

struct StageTime {
  const char* stage;
  std::optional<size_t> layer;  // none for the embedding and the logits
  double seconds;
};

// A record of Transformer::Forward. A stage's time is that from the end of the one before, waiting for all workers
// included, so the stages add up to the step.
class Profile {
 public:
  void Start() { last_ = Clock::now(); }

  void End(const char* stage, std::optional<size_t> layer) {
    const Clock::time_point now = Clock::now();
    times_.push_back({stage, layer, std::chrono::duration<double>(now - last_).count()});
    last_ = now;
  }

  // In the order of the stages. A batch of several chunks has each stage once a chunk.
  const std::vector<StageTime>& times() const { return times_; }

 private:
  using Clock = std::chrono::steady_clock;

  Clock::time_point last_;
  std::vector<StageTime> times_;
};

}  // namespace lowbit
