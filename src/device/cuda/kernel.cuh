// What every kernel may use: bf16, sums over a warp or a block, tensor-core products, counter-based random words.
//
// The same sources compile in two ways: by nvcc for a GPU, and by a host compiler with CUDA_ON_CPU defined, which runs
// each CUDA thread as a fiber (tests/cuda/cuda_on_cpu.h). What only a GPU has (inline PTX) therefore lives here, each
// piece beside its stand-in, and nowhere else.
//
// Conventions: matrices are row-major; a row or element index that can pass 2^31 is 64 bits wide; blocks are one
// dimensional with a multiple of 32 threads; nothing depends on the order in which blocks run, so results are the same
// bits every time.
#pragma once

#ifdef CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cstdint>
#include <cuda_bf16.h>
#define DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(128) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)
#endif

typedef __nv_bfloat16 bf16;

#define KERNEL extern "C" __global__ void

constexpr unsigned FULL_WARP = 0xffffffffu;

__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ bf16 to_bf16(float value) { return __float2bfloat16_rn(value); }

// Two bf16 in one word, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  union { bf16 halves[2]; uint32_t word; } pair;
  pair.halves[0] = to_bf16(low);
  pair.halves[1] = to_bf16(high);
  return pair.word;
}

__device__ __forceinline__ float low_half(uint32_t word) {
  union { uint32_t bits; float value; } f;
  f.bits = word << 16;
  return f.value;
}

__device__ __forceinline__ float high_half(uint32_t word) {
  union { uint32_t bits; float value; } f;
  f.bits = word & 0xffff0000u;
  return f.value;
}

// First element of this thread and the distance to its next one, for loops over all elements of a grid.
__device__ __forceinline__ long long first_element() {
  return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ long long element_step() { return static_cast<long long>(gridDim.x) * blockDim.x; }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(FULL_WARP, value, offset);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, offset));
  return value;
}

// Sum over the block, known to every thread. All threads must call it.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float sums[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  value = warp_sum(value);
  __syncthreads();  // an earlier call may still be reading
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : 0.f);
}

// Largest value of the block, known to every thread. All threads must call it.
__device__ __forceinline__ float block_max(float value) {
  __shared__ float maxima[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  value = warp_max(value);
  __syncthreads();
  if (lane == 0) maxima[warp] = value;
  __syncthreads();
  return warp_max(lane < warps ? maxima[lane] : -INFINITY);
}

// Philox4x32-10: call `index` of a stream (src/ops/random.rs computes the same words).
struct Words { uint32_t at[4]; };

__device__ __forceinline__ Words philox(uint64_t index, uint64_t seed, uint64_t stream) {
  uint32_t c0 = uint32_t(index), c1 = uint32_t(index >> 32), c2 = uint32_t(stream), c3 = uint32_t(stream >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t low = uint64_t(c0) * 0xD2511F53u, high = uint64_t(c2) * 0xCD9E8D57u;
    const uint32_t n0 = uint32_t(high >> 32) ^ c1 ^ k0, n2 = uint32_t(low >> 32) ^ c3 ^ k1;
    c1 = uint32_t(high);
    c3 = uint32_t(low);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

// Tensor-core product of a warp: D[16,8] += A[16,16] · B[16,8], bf16 operands, f32 accumulator.
//
// With g = lane / 4 and t = lane % 4 a lane holds, as pairs of bf16,
//   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
//   d[0..2] = D[g][2t..], d[2..4] = D[g+8][2t..]
// (PTX ISA, mma.m16n8k16 with .bf16).
#ifndef CUDA_ON_CPU
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 tiles of bf16 from shared memory; lane l names row l % 8 of tile l / 8. Of tile i a lane gets
// [l / 4][2 (l % 4)..] in out[i]; transposed, [2 (l % 4)..][l / 4].
__device__ __forceinline__ void load_tiles(uint32_t (&out)[4], const bf16* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address) : "memory");
}

__device__ __forceinline__ void load_tiles_transposed(uint32_t (&out)[4], const bf16* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address) : "memory");
}

// 16 bytes from global to shared memory without passing through registers; zeros where `valid` is false. The copies of
// a thread are grouped by copy_commit and awaited by copy_wait.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// 2^x to a few ulp.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// IEEE half precision by its bits: the few conversions needed are not worth a header that the stand-in lacks.
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  union { uint32_t bits; float value; } f;
  f.bits = uint32_t(bits & 0x7fffu) << 13;
  f.value *= 5.192296858534828e33f;  // 2^112: from the bias of half to that of float, subnormals included
  if ((bits & 0x7c00u) == 0x7c00u) f.bits |= 0x7f800000u;
  f.bits |= uint32_t(bits & 0x8000u) << 16;
  return f.value;
}

// Rounds to half precision, ties to even.
__device__ __forceinline__ float round_to_half(float x) {
  union { uint32_t bits; float value; } f;
  f.value = fabsf(x);
  if (f.value < 6.103515625e-05f) {
    f.value = (f.value + 0.5f) - 0.5f;  // floats in [0.5, 1) are 2^-24 apart, as subnormal halves are
  } else if (f.value < 65520.f) {
    f.bits += 0xfffu + ((f.bits >> 13) & 1u);
    f.bits &= ~0x1fffu;
  } else if (f.value == f.value) {
    f.value = INFINITY;
  }
  return x < 0.f ? -f.value : f.value;
}

// Element types of stored weights, as the host numbers them.
enum Stored { STORED_F32 = 0, STORED_F16 = 1, STORED_BF16 = 2 };

__device__ __forceinline__ float load_stored(const void* values, int stored, long long index) {
  if (stored == STORED_F32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return stored == STORED_F16 ? half_to_float(bits) : low_half(bits);
}
