#include "src/kernels/limits.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/limits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/few_tokens-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Reads n bytes, a multiple of 256, at an aligned address. Four places at once: prefetchers work within a page, and one
// stream waits at each page (Zen 4: 20 GB/s with one stream, 27 with four or eight; prefetch instructions add nothing).
uint64_t Read(const uint8_t* HWY_RESTRICT data, size_t n) {
  const hn::ScalableTag<uint64_t> d;
  const size_t part = n / 4 / sizeof(uint64_t), N = hn::Lanes(d);
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (size_t i = 0; i + N <= part; i += N) {
    a = hn::Or(a, hn::Load(d, words + i));
    b = hn::Or(b, hn::Load(d, words + part + i));
    c = hn::Or(c, hn::Load(d, words + 2 * part + i));
    e = hn::Or(e, hn::Load(d, words + 3 * part + i));
  }
  return hn::ReduceSum(d, hn::Or(hn::Or(a, b), hn::Or(c, e)));
}

// Each step multiplies three vectors of A by four of B, as products in registers do. 12 sums hide the latency of the
// instructions. A stays in registers and B differs from step to step, so that no product can be computed before the loop.
// The loads of B are fewer than the products even where the compiler merges them into the instructions.
constexpr size_t kSteps = 8, kOperands = 3 + 4 * kSteps;

template <class D, class VSum, class MultiplyAdd>
HWY_INLINE VSum Products(D d, const hn::TFromD<D>* HWY_RESTRICT operands, size_t num_steps, VSum zero,
                         const MultiplyAdd& multiply_add) {
  const size_t N = hn::Lanes(d);
  const auto a0 = hn::Load(d, operands), a1 = hn::Load(d, operands + N), a2 = hn::Load(d, operands + 2 * N);
  VSum s00 = zero, s01 = zero, s02 = zero, s03 = zero, s10 = zero, s11 = zero, s12 = zero, s13 = zero, s20 = zero,
       s21 = zero, s22 = zero, s23 = zero;
  for (size_t step = 0; step < num_steps; ++step) {
    const hn::TFromD<D>* p = operands + (3 + step % kSteps * 4) * N;
    auto b = hn::Load(d, p);
    s00 = multiply_add(a0, b, s00), s10 = multiply_add(a1, b, s10), s20 = multiply_add(a2, b, s20);
    b = hn::Load(d, p + N);
    s01 = multiply_add(a0, b, s01), s11 = multiply_add(a1, b, s11), s21 = multiply_add(a2, b, s21);
    b = hn::Load(d, p + 2 * N);
    s02 = multiply_add(a0, b, s02), s12 = multiply_add(a1, b, s12), s22 = multiply_add(a2, b, s22);
    b = hn::Load(d, p + 3 * N);
    s03 = multiply_add(a0, b, s03), s13 = multiply_add(a1, b, s13), s23 = multiply_add(a2, b, s23);
  }
  const auto add = [](VSum x, VSum y, VSum z) HWY_ATTR { return hn::Add(hn::Add(x, y), z); };
  return hn::Add(hn::Add(add(s00, s01, s02), add(s03, s10, s11)), hn::Add(add(s12, s13, s20), add(s21, s22, s23)));
}

// Each of these returns the number of its multiply-adds. *sum receives a value that depends on all of them. `operands`:
// kOperands vectors, aligned. They come from outside so that the compiler does not know them.
size_t Int8Products(const uint8_t* operands, size_t num_steps, double* sum) {
  const auto total =
      Products(PanelBytes(), operands, num_steps, hn::Zero(PanelInts()), [](auto a, auto b, auto s) HWY_ATTR {
        return AddQuad<false>(hn::BitCast(PanelWords(), b), hn::BitCast(PanelLevels(), a), s);
      });
  *sum = static_cast<double>(hn::ReduceSum(PanelInts(), total));
  return num_steps * 12 * hn::Lanes(PanelBytes());
}

size_t Bf16Products(const uint8_t* operands, size_t num_steps, double* sum) {
  const hn::ScalableTag<hwy::bfloat16_t> dbf;
  const hn::Repartition<float, decltype(dbf)> df;
  const hwy::bfloat16_t* values = reinterpret_cast<const hwy::bfloat16_t*>(operands);
  auto odd = hn::Zero(df);  // the instruction's second sum, on targets without a pairwise form
  const auto total = Products(dbf, values, num_steps, hn::Zero(df), [&](auto a, auto b, auto s) HWY_ATTR {
    return hn::ReorderWidenMulAccumulate(df, a, b, s, odd);
  });
  *sum = static_cast<double>(hn::ReduceSum(df, hn::Add(total, odd)));
  return num_steps * 12 * hn::Lanes(dbf);
}

size_t F32Products(const uint8_t* operands, size_t num_steps, double* sum) {
  const hn::ScalableTag<float> df;
  const float* values = reinterpret_cast<const float*>(operands);
  const auto total = Products(df, values, num_steps, hn::Zero(df),
                              [](auto a, auto b, auto s) HWY_ATTR { return hn::MulAdd(a, b, s); });
  *sum = static_cast<double>(hn::ReduceSum(df, total));
  return num_steps * 12 * hn::Lanes(df);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "hwy/aligned_allocator.h"
#include "src/base/threads.h"

namespace lowbit {
namespace {

HWY_EXPORT(Read);
HWY_EXPORT(Int8Products);
HWY_EXPORT(Bf16Products);
HWY_EXPORT(F32Products);

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPiece = size_t{1} << 20;

// Where results go, so that no loop is without effect.
std::atomic<uint64_t> sink;

template <class F>
double Seconds(const F& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

size_t Multiply(Arithmetic arithmetic, size_t num_steps) {
  HWY_ALIGN_MAX static const uint8_t operands[HWY_NAMESPACE::kOperands * hwy::kMaxVectorSize] =
      {};  // zeros of all types
  double sum = 0.0;
  size_t products = 0;
  switch (arithmetic) {
    case Arithmetic::kInt8:
      products = HWY_DYNAMIC_DISPATCH(Int8Products)(operands, num_steps, &sum);
      break;
    case Arithmetic::kBf16:
      products = HWY_DYNAMIC_DISPATCH(Bf16Products)(operands, num_steps, &sum);
      break;
    case Arithmetic::kF32:
      products = HWY_DYNAMIC_DISPATCH(F32Products)(operands, num_steps, &sum);
      break;
  }
  sink.fetch_add(sum != 0.0, std::memory_order_relaxed);
  return products;
}

}  // namespace

double ReadRate(size_t num_bytes, bool huge_pages, size_t num_threads, size_t num_passes) {
  num_bytes = std::max(kHugePage, num_bytes / kHugePage * kHugePage);
  const auto buffer = hwy::AllocateAligned<uint8_t>(num_bytes + kHugePage);
  if (!buffer) throw std::bad_alloc();
  uint8_t* data =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(buffer.get()) + kHugePage - 1) / kHugePage * kHugePage);
#if defined(__linux__)
  madvise(data, num_bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);  // a wish: without it, the rate is lower
#else
  (void)huge_pages;
#endif
  const size_t num_pieces = num_bytes / kPiece;
  // Written by the threads that read it: on machines with several memories, the pages are near to them.
  ParallelFor(num_pieces, num_threads, [&](size_t i) { std::memset(data + i * kPiece, 1, kPiece); });
  double best = 0.0;
  for (size_t pass = 0; pass < num_passes; ++pass) {
    const double seconds = Seconds([&] {
      ParallelFor(num_pieces, num_threads, [&](size_t i) {
        sink.fetch_add(HWY_DYNAMIC_DISPATCH(Read)(data + i * kPiece, kPiece), std::memory_order_relaxed);
      });
    });
    best = std::max(best, static_cast<double>(num_bytes) / seconds);
  }
  return best;
}

double MultiplyAddRate(Arithmetic arithmetic, size_t num_threads, size_t num_passes) {
  // Steps that take about a millisecond.
  size_t num_steps = 10000;
  while (num_steps < (size_t{1} << 30) && Seconds([&] { Multiply(arithmetic, num_steps); }) < 1e-3) num_steps *= 2;
  double best = 0.0;
  for (size_t pass = 0; pass < num_passes; ++pass) {
    std::atomic<size_t> products{0};
    const double seconds = Seconds([&] {
      ParallelFor(num_threads, num_threads,
                  [&](size_t) { products.fetch_add(Multiply(arithmetic, num_steps), std::memory_order_relaxed); });
    });
    best = std::max(best, static_cast<double>(products.load()) / seconds);
  }
  return best;
}

}  // namespace lowbit
#endif  // HWY_ONCE
