#include "src/formats/iq/grid.h"

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

// The levels of a code in unary: level l is l ones. A point lies between two others in every coordinate if the bits in
// which it differs from the first are among those in which the second differs from the first.
uint32_t Unary(const GridShape& shape, uint32_t code) {
  uint32_t unary = 0;
  const uint32_t mask = (1u << shape.Bits()) - 1;
  for (size_t i = 0; i < shape.num_dims; ++i) {
    const uint32_t level = code >> (shape.Bits() * i) & mask;
    unary = unary << (shape.num_levels - 1) | ((1u << level) - 1);
  }
  return unary;
}

// See Grid::SortCandidates.
std::vector<uint8_t> HalfDistances(const GridShape& shape) {
  const size_t half_bits = shape.num_dims / 2 * shape.Bits();
  std::vector<uint8_t> distances(size_t{1} << (2 * half_bits));
  for (uint32_t pair = 0; pair < distances.size(); ++pair) {
    const uint32_t mask = (1u << half_bits) - 1;
    distances[pair] = static_cast<uint8_t>(Distance(shape, pair >> half_bits, pair & mask));
  }
  return distances;
}

}  // namespace

std::vector<uint32_t> Grid::SortCandidates(uint32_t code, const std::vector<uint8_t>& half_distances) const {
  const size_t half_bits = shape_.num_dims / 2 * shape_.Bits();
  const uint32_t mask = (1u << half_bits) - 1;
  const uint8_t* low = half_distances.data() + ((code & mask) << half_bits);
  const uint8_t* high = half_distances.data() + (code >> half_bits << half_bits);
  std::array<uint8_t, kMaxGrid> distances;
  std::array<bool, kMaxDistance> occurs{};
  for (size_t index = 0; index < size(); ++index) {
    const uint32_t point = points_[index];
    distances[index] = static_cast<uint8_t>(low[point & mask] + high[point >> half_bits]);
    occurs[distances[index]] = true;
  }
  int last = -1;
  for (size_t shell = 0; shell < shape_.num_shells; ++shell) {
    const auto next = std::find(occurs.begin() + last + 1, occurs.end(), true);
    if (next == occurs.end()) break;
    last = static_cast<int>(next - occurs.begin());
  }
  std::vector<uint32_t> sorted;
  for (uint32_t index = 0; index < size(); ++index) {
    if (distances[index] <= last) sorted.push_back(distances[index] * kMaxGrid + index);
  }
  std::sort(sorted.begin(), sorted.end());
  for (uint32_t& candidate : sorted) candidate %= kMaxGrid;
  return sorted;
}

uint32_t Grid::AddList(const std::vector<uint32_t>& indices) {
  const size_t first = candidates_.size();
  for (const uint32_t index : indices) candidates_.push_back(points_[index]);
  candidates_.resize((candidates_.size() + kPad - 1) / kPad * kPad, candidates_.back());
  return static_cast<uint32_t>(first / kPad << kCountBits | indices.size());
}

Grid::Grid(const GridShape& shape, const uint64_t* members)
    : shape_(shape), entries_(shape.NumCodes()), all_entries_(shape.NumCodes()) {
  std::vector<uint32_t> off_grid, unary;  // unary: codes of the points on the grid
  size_t num_points = 1;
  for (size_t i = 0; i < shape.num_dims; ++i) num_points *= shape.num_levels;
  for (size_t n = 0; n < num_points; ++n) {
    const uint32_t code = shape.Code(n, shape.Bits());
    if (members[n / 64] >> (n % 64) & 1) {
      entries_[code] = kOnGrid + static_cast<uint32_t>(points_.size());
      points_.push_back(static_cast<uint16_t>(code));
      unary.push_back(Unary(shape, code));
    } else {
      off_grid.push_back(code);
    }
  }
  const std::vector<uint8_t> half_distances = HalfDistances(shape);
  for (const uint32_t code : off_grid) {
    const std::vector<uint32_t> all = SortCandidates(code, half_distances);
    const uint32_t own = Unary(shape, code);
    std::vector<uint32_t> kept, kept_bits;  // bits in which the kept points differ from this point
    for (const uint32_t index : all) {
      const uint32_t bits = own ^ unary[index];
      const auto between = [=](uint32_t nearer) { return (nearer & ~bits) == 0; };
      if (std::any_of(kept_bits.begin(), kept_bits.end(), between)) continue;
      kept_bits.push_back(bits);
      kept.push_back(index);
    }
    entries_[code] = AddList(kept);
    all_entries_[code] = kept.size() == all.size() ? entries_[code] : AddList(all);
  }
}

uint32_t Grid::SlowNearest(uint32_t code, const float* costs, size_t stride) const {
  const uint32_t mask = (1u << shape_.Bits()) - 1;
  size_t num;
  const uint16_t* candidates = AllCandidates(code, &num);
  uint32_t nearest = candidates[0];
  float best = FLT_MAX;
  for (size_t j = 0; j < num; ++j) {
    float cost = 0.0f;
    for (size_t i = 0; i < shape_.num_dims; ++i) {
      cost += costs[i * stride + (candidates[j] >> (shape_.Bits() * i) & mask)];
    }
    if (!(cost < best)) continue;
    best = cost;
    nearest = candidates[j];
  }
  return nearest;
}

}  // namespace lowbit
