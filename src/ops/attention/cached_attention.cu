// Attention of one new token over the keys and values of its sequence. The mathematics is in mod.rs.
//
// One query has work for one row of a tile only, so nothing is gained from tensor cores: the cache is read once, at the
// speed of the memory. A head's keys are cut into parts of 128, each of which gives its own softmax and weighted sum; a
// second kernel puts the parts together ("flash-decoding", Dao et al. 2023).
//
// Invariant: parts and sums have a fixed order that depends on the length alone, so results are the same bits every time.
#include "kernel.cuh"

constexpr int PART_KEYS = 128;       // keys of a part, and threads of its block
constexpr int MOST_HEAD_VALUES = 128;
constexpr float LOG2_OF_E = 1.4426950408889634f;

// One block: part blockIdx.x of query head blockIdx.y. q [heads D], k and v [length, kv_heads D];
// parts [heads, parts, D + 2]: the weighted sum of the values, the largest score (in powers of two), the sum of weights.
KERNEL __launch_bounds__(128) attention_row_parts(const bf16* __restrict__ q, const bf16* __restrict__ k,
                                                  const bf16* __restrict__ v, float* __restrict__ parts, int length,
                                                  int heads, int kv_heads, int head_dim, float scale) {
  __shared__ float query[MOST_HEAD_VALUES];
  __shared__ float weights[PART_KEYS];
  const int part = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
  const int kv_head = head / (heads / kv_heads);
  const int first = part * PART_KEYS, count = min(PART_KEYS, length - first);
  const long long stride = static_cast<long long>(kv_heads) * head_dim;
  const long long start = first * stride + kv_head * head_dim;
  if (thread < head_dim) query[thread] = to_float(q[head * head_dim + thread]) * (scale * LOG2_OF_E);
  __syncthreads();

  float score = -INFINITY;
  if (thread < count) {
    const uint4* const key = reinterpret_cast<const uint4*>(k + start + thread * stride);
    score = 0.f;
    for (int piece = 0; piece < head_dim / 8; piece++) {
      const uint4 words = key[piece];
      const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        score += low_half(pairs[j]) * query[8 * piece + 2 * j] + high_half(pairs[j]) * query[8 * piece + 2 * j + 1];
      }
    }
  }
  const float largest = block_max(score);
  const float weight = thread < count ? fast_exp2(score - largest) : 0.f;
  weights[thread] = weight;
  const float total = block_sum(weight);  // its barriers also publish the weights

  float* const out = parts + (static_cast<long long>(head) * gridDim.x + part) * (head_dim + 2);
  if (thread < head_dim) {
    float sum = 0.f;
    for (int i = 0; i < count; i++) sum += weights[i] * to_float(v[start + i * stride + thread]);
    out[thread] = sum;
  }
  if (thread == 0) {
    out[head_dim] = largest;
    out[head_dim + 1] = total;
  }
}

// One block: the parts of head blockIdx.x to out [heads D].
KERNEL __launch_bounds__(128) attention_row_whole(const float* __restrict__ parts, bf16* __restrict__ out, int count,
                                                  int head_dim) {
  const float* const own = parts + static_cast<long long>(blockIdx.x) * count * (head_dim + 2);
  const int thread = threadIdx.x;
  if (thread >= head_dim) return;
  float largest = -INFINITY;
  for (int i = 0; i < count; i++) largest = fmaxf(largest, own[i * (head_dim + 2) + head_dim]);
  float sum = 0.f, total = 0.f;
  for (int i = 0; i < count; i++) {
    const float* const part = own + i * (head_dim + 2);
    const float factor = fast_exp2(part[head_dim] - largest);
    sum += factor * part[thread];
    total += factor * part[head_dim + 1];
  }
  out[blockIdx.x * head_dim + thread] = to_bf16(sum / total);
}
