// A linear layer for one row, the product of decoding: y [N] = W x + bias + s B u, where u = A x. The mathematics is in
// mod.rs.
//
// The weight is read once and hardly anything is computed with it, so what counts is the bytes read: 4-bit codes stay
// codes. A warp computes one output; a lane reads 16 bytes at a time, and the lanes of a warp lie side by side. The row x
// comes out of the cache, where all warps find it.
//
// Codes are looked up in a table that every lane has a copy of, in a bank of its own. A block's scale is multiplied once,
// after the sum over its codes: so a weight is not rounded to bf16 here, as it is where it is decoded for a big product.
//
// Invariant: every sum has a fixed order, so results are the same bits every time.
#include "../../quant/nf4.cuh"

constexpr int ROW_THREADS = 256;

// What follows the product with the weight.
struct RowTail {
  const float* bias;  // [N], or null
  const bf16* b;      // [N, rank]
  const bf16* u;      // [rank]
  int rank;           // 0 without an adapter
  float scale;
  int accumulate;     // whether y is added to
};

// The value of output `row`, known to the first lane. `sum` is the lane's part of the product with the weight.
__device__ __forceinline__ float finish_row(float sum, int row, const RowTail& tail) {
  float low_rank = 0.f;
  for (int i = threadIdx.x & 31; i < tail.rank; i += 32) {
    low_rank += to_float(tail.b[static_cast<long long>(row) * tail.rank + i]) * to_float(tail.u[i]);
  }
  sum = warp_sum(sum + tail.scale * low_rank);
  return tail.bias ? sum + tail.bias[row] : sum;
}

// sum += eight weights, as `weight(j)` gives them, times eight values of x.
template <class Weight>
__device__ __forceinline__ void add_eight(float& sum, Weight weight, const bf16* x) {
  const uint4 words = *reinterpret_cast<const uint4*>(x);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    sum += weight(2 * j) * low_half(pairs[j]);
    sum += weight(2 * j + 1) * high_half(pairs[j]);
  }
}

// One warp: one row of an NF4 weight [rows, columns], WORDS words of eight codes at a time; columns is a multiple of
// 8 WORDS, so these never cross into another block of 32 or more.
template <int WORDS>
__device__ __forceinline__ void multiply_nf4_row(const uint8_t* packed, const Nf4Scales& scales, int block_shift,
                                                 const bf16* x, bf16* y, int rows, int columns, const RowTail& tail) {
  __shared__ float table[16 * 32];
  for (int i = threadIdx.x; i < 16 * 32; i += ROW_THREADS) table[i] = nf4_value(i / 32);
  __syncthreads();
  const int lane = threadIdx.x & 31, row = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const long long start = static_cast<long long>(row) * columns;
  float sum = 0.f;
  for (int column = 8 * WORDS * lane; column < columns; column += 8 * WORDS * 32) {
    uint32_t words[WORDS];
    if (WORDS == 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(packed + (start + column) / 2);
      words[0] = four.x;
      words[WORDS > 1 ? 1 : 0] = four.y;
      words[WORDS > 2 ? 2 : 0] = four.z;
      words[WORDS > 3 ? 3 : 0] = four.w;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(packed + (start + column) / 2);
    }
    float part = 0.f;
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
      const uint32_t word = words[i];
      // The first of two codes is the high half of its byte.
      const auto weight = [&](int j) { return table[(word >> (j % 2 ? 4 * j - 4 : 4 * j + 4) & 15u) * 32 + lane]; };
      add_eight(part, weight, x + column + 8 * i);
    }
    sum += part * nf4_scale(scales, (start + column) >> block_shift);
  }
  sum = finish_row(sum, row, tail);
  if (lane == 0) y[row] = to_bf16(tail.accumulate ? to_float(y[row]) + sum : sum);
}

// Columns a multiple of 32.
KERNEL __launch_bounds__(256) nf4_row_product(const uint8_t* __restrict__ packed, const float* absmax,
                                              const uint8_t* codes, const float* nested, const float* map, float offset,
                                              int block_shift, const bf16* __restrict__ x, bf16* y, int rows,
                                              int columns, const float* bias, const bf16* b, const bf16* u, int rank,
                                              float scale, int accumulate) {
  const Nf4Scales scales{absmax, codes, nested, map, offset};
  const RowTail tail{bias, b, u, rank, scale, accumulate};
  multiply_nf4_row<4>(packed, scales, block_shift, x, y, rows, columns, tail);
}

// Columns a multiple of 8.
KERNEL __launch_bounds__(256) nf4_row_product_narrow(const uint8_t* __restrict__ packed, const float* absmax,
                                                     const uint8_t* codes, const float* nested, const float* map,
                                                     float offset, int block_shift, const bf16* __restrict__ x, bf16* y,
                                                     int rows, int columns, const float* bias, const bf16* b,
                                                     const bf16* u, int rank, float scale, int accumulate) {
  const Nf4Scales scales{absmax, codes, nested, map, offset};
  const RowTail tail{bias, b, u, rank, scale, accumulate};
  multiply_nf4_row<1>(packed, scales, block_shift, x, y, rows, columns, tail);
}

// A bf16 weight [rows, columns], columns a multiple of 8; to y, or unrounded to `whole` where there is one.
KERNEL __launch_bounds__(256) dense_row_product(const bf16* __restrict__ weight, const bf16* __restrict__ x, bf16* y,
                                                float* whole, int rows, int columns, const float* bias, const bf16* b,
                                                const bf16* u, int rank, float scale, int accumulate) {
  const RowTail tail{bias, b, u, rank, scale, accumulate};
  const int lane = threadIdx.x & 31, row = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const bf16* const own = weight + static_cast<long long>(row) * columns;
  float sum = 0.f;
  for (int column = 8 * lane; column < columns; column += 8 * 32) {
    const uint4 words = *reinterpret_cast<const uint4*>(own + column);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    const auto value = [&](int j) { return j % 2 ? high_half(pairs[j / 2]) : low_half(pairs[j / 2]); };
    add_eight(sum, value, x + column);
  }
  sum = finish_row(sum, row, tail);
  if (lane != 0) return;
  if (whole) {
    whole[row] = sum;
  } else {
    y[row] = to_bf16(tail.accumulate ? to_float(y[row]) + sum : sum);
  }
}
