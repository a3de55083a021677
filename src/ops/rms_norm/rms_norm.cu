// Root mean square norm over rows of bf16 with f32 statistics, forward and backward. The mathematics is in mod.rs.
//
// The forward pass takes the addition to the residual stream along: x += delta, rounded to bf16 as it is stored, and the
// norm of what is stored, so that the backward pass sees the very same x. One block a row; a row is read once from
// memory and a second time from cache. The number of features is a multiple of 8.
#include "kernel.cuh"

// Calls use(index, values) for the eight features from `index` on of each piece of the row that is this thread's.
template <class Use>
__device__ __forceinline__ void for_pieces(int features, Use use) {
  for (int i = 8 * threadIdx.x; i < features; i += 8 * blockDim.x) use(i);
}

struct Eight { float at[8]; };

__device__ __forceinline__ Eight load_eight(const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    out.at[2 * i] = low_half(w[i]);
    out.at[2 * i + 1] = high_half(w[i]);
  }
  return out;
}

__device__ __forceinline__ void store_eight(bf16* to, const Eight& v) {
  *reinterpret_cast<uint4*>(to) = uint4{pack_bf16(v.at[0], v.at[1]), pack_bf16(v.at[2], v.at[3]),
                                        pack_bf16(v.at[4], v.at[5]), pack_bf16(v.at[6], v.at[7])};
}

// x [T,H] (+= delta [T,H] where there is one), y = x * inv_rms * weight, inv_rms [T].
KERNEL __launch_bounds__(1024) rms_norm_forward(bf16* __restrict__ x, const bf16* __restrict__ delta,
                                                const float* __restrict__ weight, bf16* __restrict__ y,
                                                float* __restrict__ inv_rms, int features, float eps) {
  const long long row = blockIdx.x;
  x += row * features;
  y += row * features;
  float squares = 0.f;
  for_pieces(features, [&](int i) {
    Eight v = load_eight(x + i);
    if (delta) {
      const Eight d = load_eight(delta + row * features + i);
#pragma unroll
      for (int j = 0; j < 8; j++) v.at[j] = to_float(to_bf16(v.at[j] + d.at[j]));
      store_eight(x + i, v);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) squares += v.at[j] * v.at[j];
  });
  const float scale = rsqrtf(block_sum(squares) / features + eps);
  if (threadIdx.x == 0) inv_rms[row] = scale;
  for_pieces(features, [&](int i) {
    Eight v = load_eight(x + i);
#pragma unroll
    for (int j = 0; j < 8; j++) v.at[j] = v.at[j] * scale * weight[i + j];
    store_eight(y + i, v);
  });
}

// dx [T,H] += s (g - x s² mean(g x)) with g = dy * weight, s = inv_rms.
KERNEL __launch_bounds__(1024) rms_norm_backward(const bf16* __restrict__ x, const float* __restrict__ inv_rms,
                                                 const float* __restrict__ weight, const bf16* __restrict__ dy,
                                                 bf16* __restrict__ dx, int features) {
  const long long row = blockIdx.x;
  x += row * features;
  dy += row * features;
  dx += row * features;
  float product = 0.f;
  for_pieces(features, [&](int i) {
    const Eight v = load_eight(x + i), g = load_eight(dy + i);
#pragma unroll
    for (int j = 0; j < 8; j++) product += g.at[j] * weight[i + j] * v.at[j];
  });
  const float s = inv_rms[row];
  const float correction = block_sum(product) / features * s * s;
  for_pieces(features, [&](int i) {
    const Eight v = load_eight(x + i), g = load_eight(dy + i);
    Eight d = load_eight(dx + i);
#pragma unroll
    for (int j = 0; j < 8; j++) d.at[j] += s * (g.at[j] * weight[i + j] - v.at[j] * correction);
    store_eight(dx + i, d);
  });
}
