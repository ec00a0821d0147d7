#include "src/formats/grid.h"

#include <algorithm>
#include <array>
#include <cfloat>

namespace lowbit {
namespace {

constexpr size_t kMaxGrid = 2048;
constexpr int kMaxDistance = 256;

int Distance(const GridShape& shape, uint32_t a, uint32_t b) {
  const uint32_t mask = (1u << shape.Bits()) - 1;
  int distance = 0;
  for (; (a | b) != 0; a >>= shape.Bits(), b >>= shape.Bits()) {
    const int difference = static_cast<int>(a & mask) - static_cast<int>(b & mask);
    distance += difference * difference;
  }
  return distance;
}

// The levels of a code in unary: l ones. A point lies between two others in every coordinate if the bits in which it
// differs from the one are among those in which the other does.
uint32_t Unary(const GridShape& shape, uint32_t code) {
  uint32_t unary = 0;
  const uint32_t mask = (1u << shape.Bits()) - 1;
  for (size_t i = 0; i < shape.num_dims; ++i) {
    const uint32_t level = code >> (shape.Bits() * i) & mask;
    unary = unary << (shape.num_levels - 1) | ((1u << level) - 1);
  }
  return unary;
}

}  // namespace

void Grid::AddDistances() {
  half_bits_ = shape_.num_dims / 2 * shape_.Bits();
  distances_.resize(size_t{1} << (2 * half_bits_));
  for (uint32_t pair = 0; pair < distances_.size(); ++pair) {
    const uint32_t mask = (1u << half_bits_) - 1;
    distances_[pair] = static_cast<uint8_t>(Distance(shape_, pair >> half_bits_, pair & mask));
  }
}

int Grid::Distances(uint32_t code, uint8_t* distances) const {
  const uint32_t mask = (1u << half_bits_) - 1;
  const uint8_t* low = distances_.data() + ((code & mask) << half_bits_);
  const uint8_t* high = distances_.data() + (code >> half_bits_ << half_bits_);
  std::array<bool, kMaxDistance> occurs{};
  for (size_t index = 0; index < size(); ++index) {
    const uint32_t point = points_[index];
    distances[index] = static_cast<uint8_t>(low[point & mask] + high[point >> half_bits_]);
    occurs[distances[index]] = true;
  }
  int last = -1;
  for (size_t shell = 0; shell < shape_.num_shells; ++shell) {
    const auto next = std::find(occurs.begin() + last + 1, occurs.end(), true);
    if (next == occurs.end()) break;
    last = static_cast<int>(next - occurs.begin());
  }
  return last;
}

// `unary`: of all grid points.
void Grid::AddCandidates(uint32_t code, const std::vector<uint32_t>& unary) {
  std::array<uint8_t, kMaxGrid> distances;
  const int last = Distances(code, distances.data());
  std::vector<uint32_t> sorted;  // the reference's list, as distance * kMaxGrid + index
  for (uint32_t index = 0; index < size(); ++index) {
    if (distances[index] <= last) sorted.push_back(distances[index] * kMaxGrid + index);
  }
  std::sort(sorted.begin(), sorted.end());
  const uint32_t own = Unary(shape_, code);
  const size_t first = candidates_.size();
  std::vector<uint32_t> kept;  // the bits in which the candidates so far differ from the point
  for (const uint32_t candidate : sorted) {
    const uint32_t index = candidate % kMaxGrid, differs = own ^ unary[index];
    const auto between = [=](uint32_t nearer) { return (nearer & ~differs) == 0; };
    if (!shape_.all_candidates && std::any_of(kept.begin(), kept.end(), between)) continue;
    kept.push_back(differs);
    candidates_.push_back(points_[index]);
  }
  entries_[code] = static_cast<uint32_t>(first / kPad << kCountBits | kept.size());
  candidates_.resize((candidates_.size() + kPad - 1) / kPad * kPad, candidates_.back());
}

Grid::Grid(const GridShape& shape, const uint64_t* members) : shape_(shape), entries_(shape.NumCodes()) {
  std::vector<uint32_t> off_grid;
  size_t num_points = 1;
  for (size_t i = 0; i < shape.num_dims; ++i) num_points *= shape.num_levels;
  for (size_t n = 0; n < num_points; ++n) {
    uint32_t code = 0;
    size_t digits = n;
    for (size_t i = 0; i < shape.num_dims; ++i, digits /= shape.num_levels) {
      code |= static_cast<uint32_t>(digits % shape.num_levels) << (shape.Bits() * i);
    }
    if (members[n / 64] >> (n % 64) & 1) {
      entries_[code] = kOnGrid + static_cast<uint32_t>(points_.size());
      points_.push_back(static_cast<uint16_t>(code));
    } else {
      off_grid.push_back(code);
    }
  }
  AddDistances();
  std::vector<uint32_t> unary;
  for (const uint16_t point : points_) unary.push_back(Unary(shape, point));
  for (const uint32_t code : off_grid) AddCandidates(code, unary);
}

uint32_t Grid::SlowNearest(uint32_t code, const float* costs, size_t stride) const {
  std::array<uint8_t, kMaxGrid> distances;
  const int last = Distances(code, distances.data());
  const uint32_t mask = (1u << shape_.Bits()) - 1;
  size_t nearest = std::min_element(distances.begin(), distances.begin() + size()) - distances.begin();
  float best = FLT_MAX;
  int best_distance = kMaxDistance;
  for (size_t index = 0; index < size(); ++index) {
    if (distances[index] > last) continue;
    float cost = 0.0f;
    for (size_t i = 0; i < shape_.num_dims; ++i) {
      cost += costs[i * stride + (points_[index] >> (shape_.Bits() * i) & mask)];
    }
    // The list is by distance, then by index, and its first of equals wins.
    if (cost < best || (cost == best && best < FLT_MAX && distances[index] < best_distance)) {
      best = cost;
      best_distance = distances[index];
      nearest = index;
    }
  }
  return points_[nearest];
}

}  // namespace lowbit
