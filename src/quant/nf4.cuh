// The codebook and the scales of NF4 in GPU memory, for every kernel that reads codes. The format is src/quant/nf4.rs.
#pragma once
#include "kernel.cuh"

__device__ __forceinline__ float nf4_value(int code) {
  constexpr float values[16] = {
      -1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
      0.0795803f,    0.1609302f,   0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f};
  return values[code];
}

// Scales of the blocks: plain f32 where `absmax` is there, else double quantised,
// map[codes[b]] * nested[b / 256] + offset.
struct Nf4Scales {
  const float* absmax;
  const uint8_t* codes;
  const float* nested;
  const float* map;
  float offset;
};

__device__ __forceinline__ float nf4_scale(const Nf4Scales& scales, long long block) {
  if (scales.absmax) return scales.absmax[block];
  const float product = __fmul_rn(scales.map[scales.codes[block]], scales.nested[block >> 8]);
  return __fadd_rn(product, scales.offset);
}
