#include "src/kernels/kv_layout.h"

#include <algorithm>
#include <vector>

#include "hwy/base.h"
#include "src/formats/format.h"

namespace lowbit {
namespace {

constexpr size_t kPage = KvLayout::kPageTokens;

template <typename T>
void StoreElements(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, const T* key, const T* value) {
  for (size_t h = 0; h < layout.num_kv_heads; ++h) {
    T* keys = reinterpret_cast<T*>(page) + layout.HeadOffset(layer, h);
    T* values = keys + kPage * layout.head_dim + slot * layout.PaddedDim();
    for (size_t d = 0; d < layout.head_dim; ++d) keys[d * kPage + slot] = key[h * layout.head_dim + d];
    std::copy_n(value + h * layout.head_dim, layout.head_dim, values);
  }
}

}  // namespace

void StoreKeyValue(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, const float* key,
                   const float* value) {
  if (layout.is_f32) {
    StoreElements(layout, page, slot, layer, key, value);
    return;
  }
  const size_t num = layout.num_kv_heads * layout.head_dim;
  static const Format& f16 = GetFormat("F16");
  thread_local std::vector<hwy::float16_t> halves;
  halves.resize(2 * num);
  f16.encode(key, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data()));
  f16.encode(value, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data() + num));
  StoreElements(layout, page, slot, layer, halves.data(), halves.data() + num);
}

}  // namespace lowbit
