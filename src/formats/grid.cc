#include "src/formats/grid.h"

#include <algorithm>
#include <array>
#include <cfloat>

namespace lowbit {
namespace {

constexpr size_t kMaxGrid = 2048;

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
  for (const uint32_t code : off_grid) AddCandidates(code);
}

int Grid::Distance(uint32_t a, uint32_t b) const {
  const uint32_t mask = (1u << shape_.Bits()) - 1;
  int distance = 0;
  for (size_t i = 0; i < shape_.num_dims; ++i, a >>= shape_.Bits(), b >>= shape_.Bits()) {
    const int difference = static_cast<int>(a & mask) - static_cast<int>(b & mask);
    distance += difference * difference;
  }
  return distance;
}

int Grid::Distances(uint32_t code, uint8_t* distances) const {
  // A code has at most 16 bits: the distances of its low byte, and of the rest, from those of all others are looked up.
  // Bits() may not divide 8, so the halves are of whole coordinates.
  const size_t low_dims = shape_.num_dims / 2, low_bits = low_dims * shape_.Bits();
  const uint32_t low_mask = (1u << low_bits) - 1;
  std::array<uint8_t, 256> low, high;
  for (uint32_t half = 0; half <= low_mask; ++half) {
    low[half] = static_cast<uint8_t>(Distance(code & low_mask, half));
    high[half] = static_cast<uint8_t>(Distance(code >> low_bits, half));
  }
  std::array<uint32_t, 256> histogram{};
  for (size_t index = 0; index < points_.size(); ++index) {
    distances[index] = static_cast<uint8_t>(low[points_[index] & low_mask] + high[points_[index] >> low_bits]);
    ++histogram[distances[index]];
  }
  int last = -1;
  for (size_t shell = 0; shell < shape_.num_shells; ++shell) {
    int next = last + 1;
    while (next < 256 && histogram[next] == 0) ++next;
    if (next == 256) break;
    last = next;
  }
  return last;
}

void Grid::AddCandidates(uint32_t code) {
  std::array<uint8_t, kMaxGrid> distances;
  const int last = Distances(code, distances.data());
  const uint32_t own = Unary(shape_, code);
  const size_t first = candidates_.size();
  std::vector<uint32_t> kept;  // the bits in which each candidate of the list so far differs from the point
  for (int distance = 0; distance <= last; ++distance) {
    for (size_t index = 0; index < points_.size(); ++index) {
      if (distances[index] != distance) continue;
      const uint32_t differs = own ^ Unary(shape_, points_[index]);
      if (std::any_of(kept.begin(), kept.end(), [=](uint32_t nearer) { return (nearer & ~differs) == 0; })) continue;
      kept.push_back(differs);
      candidates_.push_back(points_[index]);
    }
  }
  entries_[code] = static_cast<uint32_t>(first / kPad << kCountBits | kept.size());
  candidates_.resize((candidates_.size() + kPad - 1) / kPad * kPad, candidates_.back());
}

uint32_t Grid::SlowNearest(uint32_t code, const float* costs, size_t stride) const {
  std::array<uint8_t, kMaxGrid> distances;
  const int last = Distances(code, distances.data());
  const uint32_t mask = (1u << shape_.Bits()) - 1;
  size_t nearest = std::min_element(distances.begin(), distances.begin() + points_.size()) - distances.begin();
  float best = FLT_MAX;
  int best_distance = 0;
  for (size_t index = 0; index < points_.size(); ++index) {
    if (distances[index] > last) continue;
    float cost = 0.0f;
    for (size_t i = 0; i < shape_.num_dims; ++i)
      cost += costs[i * stride + (points_[index] >> (shape_.Bits() * i) & mask)];
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
