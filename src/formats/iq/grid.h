// IQ1, IQ2 and IQ3 store several weights as the index of a point on a grid: a fixed set of points with coordinates
// ("levels") in [0, num_levels). This file has what their encoders share: the set, the map from a point to its index,
// and for points off the grid the candidates that can replace them. grid-inl.h has the search.
//
// A point is represented by a code: level i in bits [bits * i, bits * (i + 1)), with bits = 2 for up to four levels,
// else 3.
//
// The reference replaces a point off the grid as follows. Of the distances (squared, over levels) from the point to
// grid points, it takes the `num_shells` smallest ones. It lists the points at these distances, by distance, then by
// index. The result is the first point in the list with the least weighted error, summed over the coordinates in order.
//
// Candidates() omits points that cannot win: candidate A is omitted if the list has another point B that lies between
// the point and A in every coordinate. If the error of each coordinate does not fall from the point's level outwards,
// B's error is at most A's, also when rounded (rounding is monotonic), and B comes first because it is nearer. On
// average 13 of 18 candidates remain for IQ2_XXS, 16 of 30 for IQ2_XS and 16 of 73 for IQ1. Rounding at a tie of two
// levels, or overflow, can break the condition. Encoders check it, and otherwise use the complete list.
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

  // A point with `bits` for each level: its levels are the digits of n in base num_levels, the first level in the
  // lowest digit.
  constexpr uint32_t Code(size_t n, size_t bits) const {
    uint32_t code = 0;
    for (size_t i = 0; i < num_dims; ++i, n /= num_levels) code |= static_cast<uint32_t>(n % num_levels) << (bits * i);
    return code;
  }
};

// The levels of a grid's points in two bytes, by index: two bits for each of eight levels, or four for each of four.
// For products.
template <size_t kNum>
struct GridBytes {
  alignas(64) uint8_t low[kNum];
  alignas(64) uint8_t high[kNum];
};

// `members` is as for Grid.
template <size_t kNum, size_t kWords>
constexpr GridBytes<kNum> BytesOfLevels(const GridShape& shape, const uint64_t (&members)[kWords]) {
  GridBytes<kNum> bytes = {};
  size_t index = 0;
  for (size_t n = 0; index < kNum; ++n) {
    if ((members[n / 64] >> (n % 64) & 1) == 0) continue;
    const uint32_t code = shape.Code(n, 16 / shape.num_dims);
    bytes.low[index] = static_cast<uint8_t>(code);
    bytes.high[index] = static_cast<uint8_t>(code >> 8);
    ++index;
  }
  return bytes;
}

class Grid {
 public:
  // Lists are padded to a multiple of this with their last point, so vectors of candidates need no remainder.
  static constexpr size_t kPad = 16;

  // Bit n of `members` says whether a point is on the grid: its levels are the digits of n in base num_levels, the
  // first level in the lowest digit. Indices follow that order. Construction takes about 10 ms; each grid is made at
  // first use.
  Grid(const GridShape& shape, const uint64_t* members);

  size_t size() const { return points_.size(); }

  // The code of the point with this index.
  uint16_t Point(size_t index) const { return points_[index]; }

  bool Contains(size_t code) const { return entries_[code] >= kOnGrid; }

  // The index of a point on the grid.
  uint32_t Index(size_t code) const { return entries_[code] - kOnGrid; }

  // For a point off the grid: the codes of its candidates in order, and their number.
  const uint16_t* Candidates(size_t code, size_t* num) const { return List(entries_[code], num); }

  // The complete list, including the candidates that Candidates omits.
  const uint16_t* AllCandidates(size_t code, size_t* num) const { return List(all_entries_[code], num); }

  // The reference's search: the code of the grid point that replaces the point `code`. The weighted error of coordinate
  // i at level l is costs[i * stride + l]. If no candidate costs less than FLT_MAX, the first one is the result.
  uint32_t SlowNearest(uint32_t code, const float* costs, size_t stride) const;

 private:
  static constexpr uint32_t kOnGrid = 1u << 31;
  static constexpr uint32_t kCountBits = 12, kMaxCandidates = (1u << kCountBits) - 1;

  const uint16_t* List(uint32_t entry, size_t* num) const {
    *num = entry & kMaxCandidates;
    return candidates_.data() + (entry >> kCountBits) * kPad;
  }

  // The reference's list for a point, as indices. half_distances: the distance between halves a and b of the
  // coordinates is at [a << bits of a half | b].
  std::vector<uint32_t> SortCandidates(uint32_t code, const std::vector<uint8_t>& half_distances) const;
  uint32_t AddList(const std::vector<uint32_t>& indices);

  GridShape shape_;
  std::vector<uint16_t> points_;       // by index
  std::vector<uint32_t> entries_;      // by code: kOnGrid + index, or position / kPad << kCountBits | number
  std::vector<uint32_t> all_entries_;  // the same for complete lists
  std::vector<uint16_t> candidates_;   // the lists of all points
};

}  // namespace lowbit
