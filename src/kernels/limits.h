// Limits of the machine, measured: what the kernels' speed is compared with.
#pragma once

#include <cstddef>

namespace lowbit {

// Bytes per second that num_threads threads read from a buffer of num_bytes, which should be far larger than the last
// cache: the best of num_passes. huge_pages: the buffer gets pages of 2 MiB where the system has them on request (Linux).
// Without, it gets ordinary pages. Throws std::bad_alloc.
double ReadRate(size_t num_bytes, bool huge_pages, size_t num_threads, size_t num_passes);

enum class Arithmetic { kInt8, kBf16, kF32 };

// Multiply-adds per second of num_threads threads on the current SIMD target, with operands in the first-level cache:
// the best of num_passes, each of about a millisecond. The instructions are those of the products: 8-bit integers
// summed in 32 bits, bf16 pairs summed in f32, f32 fused.
double MultiplyAddRate(Arithmetic arithmetic, size_t num_threads, size_t num_passes);

}  // namespace lowbit
