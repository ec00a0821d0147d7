// The formats IQ1, IQ2 and IQ3 store several weights together as the index of a point on a grid: a fixed set of points
// with coordinates ("levels") in [0, num_levels). What their encoders share: the set, the map from a point to its
// index, and for points off the grid the ones that may stand in. grid-inl.h has the search.
//
// A point is written as a code: level i in bits [bits * i, bits * (i + 1)) with bits = 2 for up to four levels, else 3.
//
// How the reference stands in: of all grid points, it takes the `num_shells` smallest of the distances from the point
// that occur (squared, over levels) and makes a list of the points at these distances, by distance, then by index. The
// list's first point of least weighted error, summed over the coordinates in their order, is the result.
//
// What is left out here: a candidate A can be dropped if the list has another one, B, that lies between the point and A
// in every coordinate. If the error of each coordinate does not fall on the way from the point's level outwards, then
// B's error is at most A's, also when rounded (rounding is monotonic), and B, being nearer, comes first. That leaves 13
// of 18 candidates for IQ2_XXS on average, 16 of 30 for IQ2_XS and 16 of 73 for IQ1. Encoders check the condition,
// which rounding at a tie of two levels and overflow can break, and otherwise take the complete list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lowbit {

struct GridShape {
  size_t num_dims;
  size_t num_levels;
  size_t num_shells;

  constexpr size_t Bits() const { return num_levels <= 4 ? 2 : 3; }
  constexpr size_t NumCodes() const { return size_t{1} << (Bits() * num_dims); }
};

class Grid {
 public:
  // Lists are filled up to a multiple of this with their last point, so that vectors of candidates need no remainder.
  static constexpr size_t kPad = 16;

  // Bit n of the bit set says whether the point whose levels are the digits of n to the base num_levels, the first one
  // the lowest, is on the grid. Indices follow that order. Takes some 10 ms: a grid is made once, at its first use.
  Grid(const GridShape& shape, const uint64_t* members);

  size_t size() const { return points_.size(); }

  // The code of the point with this index.
  uint16_t Point(size_t index) const { return points_[index]; }

  bool Contains(size_t code) const { return entries_[code] >= kOnGrid; }

  // The index of a point on the grid.
  uint32_t Index(size_t code) const { return entries_[code] - kOnGrid; }

  // For a point that is not: the codes of its candidates in order, and their number.
  const uint16_t* Candidates(size_t code, size_t* num) const { return List(entries_[code], num); }

  // Its candidates with those that Candidates leaves out.
  const uint16_t* AllCandidates(size_t code, size_t* num) const { return List(all_entries_[code], num); }

  // The reference's search: the code of the grid point that stands in for the point `code` off the grid. The weighted
  // error of coordinate i at level l is costs[i * stride + l]. The first candidate if none costs less than FLT_MAX.
  uint32_t SlowNearest(uint32_t code, const float* costs, size_t stride) const;

 private:
  static constexpr uint32_t kOnGrid = 1u << 31;
  static constexpr uint32_t kCountBits = 12, kMaxCandidates = (1u << kCountBits) - 1;

  const uint16_t* List(uint32_t entry, size_t* num) const {
    *num = entry & kMaxCandidates;
    return candidates_.data() + (entry >> kCountBits) * kPad;
  }

  // The reference's list for a point, as indices. half_distances: between halves a and b of the coordinates, at
  // [a << bits of a half | b].
  std::vector<uint32_t> SortCandidates(uint32_t code, const std::vector<uint8_t>& half_distances) const;
  uint32_t AddList(const std::vector<uint32_t>& indices);

  GridShape shape_;
  std::vector<uint16_t> points_;       // by index
  std::vector<uint32_t> entries_;      // by code: kOnGrid + index, or position / kPad << kCountBits | number
  std::vector<uint32_t> all_entries_;  // the same of complete lists
  std::vector<uint16_t> candidates_;   // every point's lists
};

}  // namespace lowbit
