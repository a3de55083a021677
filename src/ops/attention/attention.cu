// Causal attention over packed documents, forward and backward, on tensor cores. The mathematics is in mod.rs.
//
// Reference: Dao, "FlashAttention-2" (2023): scores live in registers, the softmax runs online, backward computes the
// probabilities again from lse. Legend: D values a head, tiles of 64 query rows and 64 keys; a block has four warps, each
// of which owns 16 rows of its tile. Operands are bf16, sums f32. Exponentials are powers of two: scores are scaled by
// log2(e) / sqrt(D).
//
// Invariants: every sum has a fixed order and no two blocks write the same element, so results are the same bits every
// time; dk and dv sum over the query heads of their group inside one block. A tile never leaves its document: keys after
// the query are masked, and rows after the document's end are zeros that are not written.
#include "kernel.cuh"

constexpr int TILE = 64;         // query rows, or keys, of a block
constexpr int SMALL_TILE = 32;   // rows of the other side in the backward pass, where registers are scarce
constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;

// A tile of rows of one document: the document's rows [start, end), the tile's first row. `skipped` rows of the document
// have keys but no queries: q, out and lse of the forward pass begin behind them.
struct Tile {
  int start, end, first, skipped;
};

// Rows of shared memory are 16 bytes longer than D, so that the eight rows of an ldmatrix lie in different banks.
template <int D>
constexpr int STRIDE = D + 8;

// Rows [first, first + ROWS) of a head into shared memory, zeros from `end` on.
template <int D, int ROWS>
__device__ __forceinline__ void load_rows(bf16* shared, const bf16* head, long long row_stride, int first, int end) {
  constexpr int PIECES = D / 8;
  for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
    const int row = i / PIECES, column = i % PIECES * 8;
    const bool valid = first + row < end;
    const bf16* from = head + (valid ? first + row : first) * row_stride + column;
    copy_async(shared + row * STRIDE<D> + column, from, valid);
  }
}

// The 16 rows from `row` on, columns 16 k .., as the left operand of a product.
template <int D>
__device__ __forceinline__ void left_operand(uint32_t (&a)[4], const bf16* tile, int row, int k) {
  const int lane = threadIdx.x & 31;
  load_tiles(a, tile + (row + lane % 16) * STRIDE<D> + 16 * k + lane / 16 * 8);
}

// sums[16, COUNT] += left[16, D] · rowsᵀ, where `left` gives the operand of each k and `rows` [COUNT, D] are in shared
// memory.
template <int D, int COUNT, class Left>
__device__ __forceinline__ void multiply_by_rows(float (&sums)[COUNT / 8][4], Left left, const bf16* rows) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t a[4];
    left(a, k);
#pragma unroll
    for (int n = 0; n < COUNT / 16; n++) {
      uint32_t b[4];
      load_tiles(b, rows + (16 * n + lane / 16 * 8 + lane % 8) * STRIDE<D> + 16 * k + lane / 8 % 2 * 8);
      mma(sums[2 * n], a, b[0], b[1]);
      mma(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// sums[16, D] += weights[16, COUNT] · rows[COUNT, D]: the weights are accumulators of a product, in registers.
template <int D, int COUNT>
__device__ __forceinline__ void multiply_by_columns(float (&sums)[D / 8][4], const float (&weights)[COUNT / 8][4],
                                                    const bf16* rows) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < COUNT / 16; k++) {
    const float(&low)[4] = weights[2 * k];
    const float(&high)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                           pack_bf16(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t b[4];
      load_tiles_transposed(b, rows + (16 * k + lane / 8 % 2 * 8 + lane % 8) * STRIDE<D> + 16 * n + lane / 16 * 8);
      mma(sums[2 * n], a, b[0], b[1]);
      mma(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

template <int COUNT>
__device__ __forceinline__ void clear(float (&sums)[COUNT][4]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sums[i][j] = 0.f;
}

// Sum or maximum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(FULL_WARP, value, 1);
  return value + __shfl_xor_sync(FULL_WARP, value, 2);
}
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, 1));
  return fmaxf(value, __shfl_xor_sync(FULL_WARP, value, 2));
}

// Writes the accumulators of a warp's 16 rows, times the factor of each row's half, to rows of a head.
template <int D>
__device__ __forceinline__ void store_rows(const float (&sums)[D / 8][4], const float (&factor)[2], bf16* head,
                                           long long row_stride, int first, int end) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first + lane / 4 + 8 * half;
    if (row >= end) continue;
    bf16* const to = head + row * row_stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      *reinterpret_cast<uint32_t*>(to + 8 * n) =
          pack_bf16(sums[n][2 * half] * factor[half], sums[n][2 * half + 1] * factor[half]);
    }
  }
}

struct Forward {
  const bf16 *q, *k, *v;
  bf16* out;
  float* lse;
  const Tile* tiles;
  int heads, kv_heads;
  float scale;
};

// One block: a tile of queries of one head, over the keys of its document up to its last row.
template <int D>
__device__ __forceinline__ void attend(const Forward& p) {
  DYNAMIC_SHARED(bf16, shared);
  bf16* const keys = shared;
  bf16* const values = shared + TILE * STRIDE<D>;
  const Tile tile = p.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  const long long q_stride = static_cast<long long>(p.heads) * D, kv_stride = static_cast<long long>(p.kv_heads) * D;
  const bf16* const q = p.q + head * D;
  const bf16* const k = p.k + kv_head * D;
  const bf16* const v = p.v + kv_head * D;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_row = tile.first + 16 * warp;

  // The queries pass through the memory of the keys into registers.
  load_rows<D, TILE>(keys, q, q_stride, tile.first - tile.skipped, tile.end - tile.skipped);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  uint32_t queries[D / 16][4];
#pragma unroll
  for (int i = 0; i < D / 16; i++) left_operand<D>(queries[i], keys, 16 * warp, i);
  __syncthreads();

  const float scale = p.scale * LOG2_E;
  const int last_row = min(tile.first + TILE, tile.end) - 1;
  float sums[D / 8][4];
  clear(sums);
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
  load_rows<D, TILE>(keys, k, kv_stride, tile.start, tile.end);
  copy_commit();
  for (int first_key = tile.start; first_key <= last_row; first_key += TILE) {
    load_rows<D, TILE>(values, v, kv_stride, first_key, tile.end);
    copy_commit();
    copy_wait<1>();  // the keys are there, the values may be under way
    __syncthreads();
    float scores[TILE / 8][4];
    clear(scores);
    multiply_by_rows<D, TILE>(scores, [&](uint32_t(&a)[4], int i) {
#pragma unroll
      for (int j = 0; j < 4; j++) a[j] = queries[i][j];
    }, keys);
    __syncthreads();  // everyone has read the keys: the next ones may come while the softmax runs
    if (first_key + TILE <= last_row) load_rows<D, TILE>(keys, k, kv_stride, first_key + TILE, tile.end);
    copy_commit();

    const bool masked = first_key + TILE - 1 > first_row;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + lane / 4 + 8 * half;
      float top = largest[half];
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          float& score = scores[n][2 * half + j];
          score = masked && first_key + 8 * n + lane % 4 * 2 + j > row ? -INFINITY : score * scale;
          top = fmaxf(top, score);
        }
      top = row_max(top);
      // The first key of the document is never masked, so `top` is finite.
      const float shrink = fast_exp2(largest[half] - top);
      largest[half] = top;
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        sums[n][2 * half] *= shrink;
        sums[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          float& score = scores[n][2 * half + j];
          score = fast_exp2(score - top);
          total[half] += score;
        }
    }
    copy_wait<1>();  // the values are there, the next keys may be under way
    __syncthreads();
    multiply_by_columns<D, TILE>(sums, scores, values);
    __syncthreads();
  }
  copy_wait<0>();

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float sum = row_sum(total[half]);
    inverse[half] = 1.f / sum;
    const int row = first_row + lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < tile.end) {
      p.lse[static_cast<long long>(row - tile.skipped) * p.heads + head] = (largest[half] + log2f(sum)) / LOG2_E;
    }
  }
  store_rows<D>(sums, inverse, p.out + head * D, q_stride, first_row - tile.skipped, tile.end - tile.skipped);
}

struct Backward {
  const bf16 *q, *k, *v, *dout;
  const float *lse, *delta;
  bf16 *dq, *dk, *dv;
  const Tile* tiles;
  int heads, kv_heads;
  float scale;
};

// dq of a tile of queries: ds = p ∘ (dout · vᵀ - delta), dq = scale · ds · k.
template <int D>
__device__ __forceinline__ void query_gradients(const Backward& p) {
  DYNAMIC_SHARED(bf16, shared);
  bf16* const keys = shared;
  bf16* const values = shared + SMALL_TILE * STRIDE<D>;
  bf16* const queries = shared + 2 * SMALL_TILE * STRIDE<D>;
  bf16* const gradients = queries + TILE * STRIDE<D>;
  const Tile tile = p.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  const long long q_stride = static_cast<long long>(p.heads) * D, kv_stride = static_cast<long long>(p.kv_heads) * D;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_row = tile.first + 16 * warp;

  load_rows<D, TILE>(queries, p.q + head * D, q_stride, tile.first, tile.end);
  load_rows<D, TILE>(gradients, p.dout + head * D, q_stride, tile.first, tile.end);
  copy_commit();
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + lane / 4 + 8 * half;
    const long long at = static_cast<long long>(row) * p.heads + head;
    lse[half] = row < tile.end ? p.lse[at] * LOG2_E : 0.f;
    delta[half] = row < tile.end ? p.delta[at] : 0.f;
  }

  const float scale = p.scale * LOG2_E;
  const int last_row = min(tile.first + TILE, tile.end) - 1;
  float sums[D / 8][4];
  clear(sums);
  for (int first_key = tile.start; first_key <= last_row; first_key += SMALL_TILE) {
    load_rows<D, SMALL_TILE>(keys, p.k + kv_head * D, kv_stride, first_key, tile.end);
    load_rows<D, SMALL_TILE>(values, p.v + kv_head * D, kv_stride, first_key, tile.end);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    float scores[SMALL_TILE / 8][4], products[SMALL_TILE / 8][4];
    clear(scores);
    clear(products);
    multiply_by_rows<D, SMALL_TILE>(
        scores, [&](uint32_t(&a)[4], int i) { left_operand<D>(a, queries, 16 * warp, i); }, keys);
    multiply_by_rows<D, SMALL_TILE>(
        products, [&](uint32_t(&a)[4], int i) { left_operand<D>(a, gradients, 16 * warp, i); }, values);
#pragma unroll
    for (int n = 0; n < SMALL_TILE / 8; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int half = j / 2, row = first_row + lane / 4 + 8 * half, key = first_key + 8 * n + lane % 4 * 2 + j % 2;
        const float probability = key > row ? 0.f : fast_exp2(scores[n][j] * scale - lse[half]);
        scores[n][j] = probability * (products[n][j] - delta[half]);
      }
    multiply_by_columns<D, SMALL_TILE>(sums, scores, keys);
    __syncthreads();
  }
  const float factor[2] = {p.scale, p.scale};
  store_rows<D>(sums, factor, p.dq + head * D, q_stride, first_row, tile.end);
}

// dk and dv of a tile of keys: rows are keys here, columns queries. dv = pᵀ · dout, dk = scale · dsᵀ · q, over the query
// rows from the tile on and all query heads of the group.
template <int D>
__device__ __forceinline__ void key_gradients(const Backward& p) {
  DYNAMIC_SHARED(bf16, shared);
  bf16* const keys = shared;
  bf16* const values = keys + TILE * STRIDE<D>;
  bf16* const queries = values + TILE * STRIDE<D>;
  bf16* const gradients = queries + SMALL_TILE * STRIDE<D>;
  float* const lse = reinterpret_cast<float*>(gradients + SMALL_TILE * STRIDE<D>);
  float* const delta = lse + SMALL_TILE;
  const Tile tile = p.tiles[blockIdx.x];
  const int kv_head = blockIdx.y, group = p.heads / p.kv_heads;
  const long long q_stride = static_cast<long long>(p.heads) * D, kv_stride = static_cast<long long>(p.kv_heads) * D;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_key = tile.first + 16 * warp;

  load_rows<D, TILE>(keys, p.k + kv_head * D, kv_stride, tile.first, tile.end);
  load_rows<D, TILE>(values, p.v + kv_head * D, kv_stride, tile.first, tile.end);
  copy_commit();

  const float scale = p.scale * LOG2_E;
  float dk[D / 8][4], dv[D / 8][4];
  clear(dk);
  clear(dv);
  for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
    for (int first_query = tile.first; first_query < tile.end; first_query += SMALL_TILE) {
      load_rows<D, SMALL_TILE>(queries, p.q + head * D, q_stride, first_query, tile.end);
      load_rows<D, SMALL_TILE>(gradients, p.dout + head * D, q_stride, first_query, tile.end);
      copy_commit();
      if (threadIdx.x < SMALL_TILE) {
        const int row = first_query + threadIdx.x;
        const long long at = static_cast<long long>(row) * p.heads + head;
        // Beyond the document p becomes exp2(0 - inf) = 0.
        lse[threadIdx.x] = row < tile.end ? p.lse[at] * LOG2_E : INFINITY;
        delta[threadIdx.x] = row < tile.end ? p.delta[at] : 0.f;
      }
      copy_wait<0>();
      __syncthreads();
      float scores[SMALL_TILE / 8][4], products[SMALL_TILE / 8][4];
      clear(scores);
      clear(products);
      multiply_by_rows<D, SMALL_TILE>(
          scores, [&](uint32_t(&a)[4], int i) { left_operand<D>(a, keys, 16 * warp, i); }, queries);
      multiply_by_rows<D, SMALL_TILE>(
          products, [&](uint32_t(&a)[4], int i) { left_operand<D>(a, values, 16 * warp, i); }, gradients);
#pragma unroll
      for (int n = 0; n < SMALL_TILE / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int key = first_key + lane / 4 + j / 2 * 8, column = 8 * n + lane % 4 * 2 + j % 2;
          const bool hidden = key > first_query + column;
          const float probability = hidden ? 0.f : fast_exp2(scores[n][j] * scale - lse[column]);
          scores[n][j] = probability;
          products[n][j] = probability * (products[n][j] - delta[column]);
        }
      multiply_by_columns<D, SMALL_TILE>(dv, scores, gradients);
      multiply_by_columns<D, SMALL_TILE>(dk, products, queries);
      __syncthreads();
    }
  }
  const float one[2] = {1.f, 1.f}, factor[2] = {p.scale, p.scale};
  store_rows<D>(dv, one, p.dv + kv_head * D, kv_stride, first_key, tile.end);
  store_rows<D>(dk, factor, p.dk + kv_head * D, kv_stride, first_key, tile.end);
}

// delta [T,heads] = Σ_d dout · out, one warp a row of a head.
KERNEL __launch_bounds__(256) attention_delta(const bf16* __restrict__ dout, const bf16* __restrict__ out,
                                              float* __restrict__ delta, long long rows, int head_dim) {
  const long long row = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float sum = 0.f;
  for (int i = threadIdx.x & 31; i < head_dim; i += 32) {
    sum += to_float(dout[row * head_dim + i]) * to_float(out[row * head_dim + i]);
  }
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) delta[row] = sum;
}

#define ATTENTION_OF(D)                                                                                              \
  KERNEL __launch_bounds__(THREADS) attention_forward_##D(                                                           \
      const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const Tile* tiles, int heads, int kv_heads, \
      float scale) {                                                                                                 \
    attend<D>(Forward{q, k, v, out, lse, tiles, heads, kv_heads, scale});                                            \
  }                                                                                                                  \
  KERNEL __launch_bounds__(THREADS) attention_query_gradients_##D(                                                   \
      const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta, bf16* dq, \
      const Tile* tiles, int heads, int kv_heads, float scale) {                                                     \
    query_gradients<D>(Backward{q, k, v, dout, lse, delta, dq, nullptr, nullptr, tiles, heads, kv_heads, scale});    \
  }                                                                                                                  \
  KERNEL __launch_bounds__(THREADS) attention_key_gradients_##D(                                                     \
      const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta, bf16* dk, \
      bf16* dv, const Tile* tiles, int heads, int kv_heads, float scale) {                                           \
    key_gradients<D>(Backward{q, k, v, dout, lse, delta, nullptr, dk, dv, tiles, heads, kv_heads, scale});           \
  }

ATTENTION_OF(16)
ATTENTION_OF(32)
ATTENTION_OF(64)
ATTENTION_OF(96)
ATTENTION_OF(128)
