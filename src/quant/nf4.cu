// NF4 on the GPU: weights to 4-bit codes with a scale a block, and back to bf16. The format is src/quant/nf4.rs.
//
// quantise     absmax = max |x| of a block; code = number of codebook midpoints below clamp(x * (1 / absmax), -1, 1)
// scales       offset = mean(absmax); 8-bit codes of absmax - offset in blocks of 256 (src/quant/double.rs)
// dequantise   value = bf16(round_to_source_dtype(codebook[code] * scale(block)))
//
// Invariant: codes, scales and values equal those of the CPU bit for bit. Every operation that rounds is written as one
// that the compiler may not contract or approximate, and the borders of the format (short last block, block of zeros,
// odd count) are those of src/quant/quantize.rs.
//
// Both are bound by memory: a warp reads a block of 64 values in one coalesced access, a thread writes 16 bytes.
#include "nf4.cuh"

// The number of midpoints between neighbouring values of the codebook that lie below `y`.
__device__ __forceinline__ unsigned nf4_code(float y) {
  unsigned code = 0;
#pragma unroll
  for (int i = 0; i < 15; i++) code += __fmul_rn(__fadd_rn(nf4_value(i), nf4_value(i + 1)), 0.5f) < y;
  return code;
}

// `count` values in blocks of `block` (a power of two from 32 on): packed[ceil(count / 2)], absmax[ceil(count / block)].
// *first_bad becomes the smallest index of a value that is not finite. One warp a block of values.
KERNEL __launch_bounds__(256) nf4_quantize(const void* __restrict__ values, int stored, long long count, int block,
                                           uint8_t* __restrict__ packed, float* __restrict__ absmax,
                                           unsigned long long* __restrict__ first_bad) {
  const long long index = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const long long start = index * block;
  if (start >= count) return;
  const int lane = threadIdx.x & 31;
  const int length = count - start < block ? static_cast<int>(count - start) : block;

  float largest = 0.f;
  for (int i = lane; i < length; i += 32) {
    const float size = fabsf(load_stored(values, stored, start + i));
    if (!(size <= 3.402823466e38f)) atomicMin(first_bad, static_cast<unsigned long long>(start + i));
    largest = fmaxf(largest, size);
  }
  largest = warp_max(largest);

  const bool is_full = length == block;
  const float divisor = fmaxf(largest, 1e-38f);
  const float inverse = __fdiv_rn(1.f, divisor);
  if (lane == 0) absmax[index] = is_full ? largest : divisor;
  for (int i = 2 * lane; i < length; i += 64) {
    unsigned codes[2] = {7, 7};  // an odd count leaves the code of zero in its last half byte
#pragma unroll
    for (int j = 0; j < 2; j++) {
      if (i + j >= length) continue;
      const float x = load_stored(values, stored, start + i + j);
      const float y = is_full ? __fmul_rn(x, inverse) : __fdiv_rn(x, divisor);
      codes[j] = nf4_code(fminf(fmaxf(y, -1.f), 1.f));
    }
    packed[(start + i) / 2] = static_cast<uint8_t>(codes[0] << 4 | codes[1]);
  }
}

// Values whose sum is a part of the mean, as src/quant/double.rs cuts them.
constexpr int SCALES_OF_A_PART = 65536;

// parts[i] = sum of the i-th SCALES_OF_A_PART scales in f64, in order: one thread a part, so that it is the CPU's.
KERNEL __launch_bounds__(32) nf4_scale_sums(const float* __restrict__ absmax, long long count,
                                            double* __restrict__ parts) {
  const long long start = first_element() * SCALES_OF_A_PART;
  if (start >= count) return;
  const int length = count - start < SCALES_OF_A_PART ? static_cast<int>(count - start) : SCALES_OF_A_PART;
  double sum = 0.0;
#pragma unroll 16
  for (int i = 0; i < length; i++) sum += static_cast<double>(absmax[start + i]);
  parts[first_element()] = sum;
}

// *offset = mean of `count` scales, from their parts in order. One thread.
KERNEL __launch_bounds__(32) nf4_scale_mean(const double* __restrict__ parts, long long part_count, long long count,
                                            float* __restrict__ offset) {
  if (first_element() > 0) return;
  double sum = 0.0;
  for (long long i = 0; i < part_count; i++) sum += parts[i];
  *offset = static_cast<float>(sum / static_cast<double>(count));
}

// 8-bit codes of `count` scales around *offset, nested[block] = largest distance of 256 of them: a block of 256 threads
// each. `table` holds the code of each of 65536 equal steps from -1 to 1.
KERNEL __launch_bounds__(256) nf4_scale_codes(const float* __restrict__ absmax, long long count,
                                              const float* __restrict__ offset, const uint8_t* __restrict__ table,
                                              uint8_t* __restrict__ codes, float* __restrict__ nested) {
  const long long index = first_element();
  const bool is_scale = index < count;
  const float distance = is_scale ? __fsub_rn(absmax[index], *offset) : 0.f;
  const float largest = block_max(fabsf(distance));
  if (threadIdx.x == 0) nested[blockIdx.x] = largest;
  if (!is_scale) return;
  unsigned point = 0;
  if (largest > 0.f) {
    const float unit = fminf(fmaxf(__fmul_rn(distance, __fdiv_rn(1.f, largest)), -1.f), 1.f);
    const float half = __fmul_rn(__fadd_rn(unit, 1.f), 0.5f);
    point = static_cast<unsigned>(__fadd_rn(__fmul_rn(half, 65535.f), 0.5f));
  }
  codes[index] = largest > 0.f ? table[point] : 0;
}

__device__ __forceinline__ float nf4_round(float value, int stored) {
  if (stored == STORED_F16) return round_to_half(value);
  return stored == STORED_BF16 ? to_float(to_bf16(value)) : value;
}

// `count` values from flat index 0 on, eight a thread: blocks of 2^block_shift values, rounded to the dtype `stored` of
// what was quantised and then to bf16.
KERNEL __launch_bounds__(256) nf4_dequantize(const uint8_t* __restrict__ packed, const float* absmax,
                                             const uint8_t* codes, const float* nested, const float* map, float offset,
                                             long long count, int block_shift, int stored, bf16* __restrict__ out) {
  __shared__ float values[16];
  if (threadIdx.x < 16) values[threadIdx.x] = nf4_value(threadIdx.x);
  __syncthreads();
  const Nf4Scales scales{absmax, codes, nested, map, offset};
  for (long long i = 8 * first_element(); i < count; i += 8 * element_step()) {
    const float scale = nf4_scale(scales, i >> block_shift);
    if (i + 8 <= count) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(packed + i / 2);
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t byte = word >> (8 * j) & 0xffu;
        pairs[j] = pack_bf16(nf4_round(__fmul_rn(values[byte >> 4], scale), stored),
                             nf4_round(__fmul_rn(values[byte & 15u], scale), stored));
      }
      *reinterpret_cast<uint4*>(out + i) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
    } else {
      for (long long j = i; j < count; j++) {
        const unsigned byte = packed[j / 2];
        out[j] = to_bf16(nf4_round(__fmul_rn(values[j % 2 ? byte & 15u : byte >> 4], scale), stored));
      }
    }
  }
}
