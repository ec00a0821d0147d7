#include "src/kernels/kv_layout.h"

#include <algorithm>
#include <vector>

#include "hwy/base.h"
#include "src/formats/format.h"

namespace lowbit {
namespace {

constexpr size_t kPage = KvLayout::kPageTokens;

template <typename T>
void StoreElements(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, size_t head, const T* key,
                   const T* value) {
  T* keys = reinterpret_cast<T*>(page) + layout.HeadOffset(layer, head);
  for (size_t d = 0; d < layout.head_dim; ++d) keys[d * kPage + slot] = key[d];
  std::copy_n(value, layout.head_dim, keys + kPage * layout.head_dim + slot * layout.PaddedDim());
}

}  // namespace

void StoreKeyValue(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, size_t head, const float* key,
                   const float* value) {
  if (layout.is_f32) return StoreElements(layout, page, slot, layer, head, key, value);
  const size_t num = layout.head_dim;
  static const Format& f16 = GetFormat("F16");
  thread_local std::vector<hwy::float16_t> halves;
  halves.resize(2 * num);
  f16.encode(key, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data()));
  f16.encode(value, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data() + num));
  StoreElements(layout, page, slot, layer, head, halves.data(), halves.data() + num);
}

}  // namespace lowbit
