// AdamW over flat f32 arrays, the sum of squares for clipping, and the bf16 copies that the products read.
//
// Invariant: no operation is contracted, so the values equal those of src/optim/adamw.rs bit for bit.
#include "kernel.cuh"

// One update of `count` values; the factors are those of adamw.rs.
KERNEL __launch_bounds__(256) adamw_update(float* __restrict__ values, const float* __restrict__ gradients,
                                           float* __restrict__ first, float* __restrict__ second, long long count,
                                           float gradient_scale, float keep, float first_new, float second_old,
                                           float second_new, float step_size, float root_correction, float eps) {
  for (long long i = first_element(); i < count; i += element_step()) {
    const float g = __fmul_rn(gradients[i], gradient_scale);
    const float m = __fadd_rn(first[i], __fmul_rn(__fsub_rn(g, first[i]), first_new));
    const float v = __fadd_rn(__fmul_rn(second[i], second_old), __fmul_rn(__fmul_rn(g, g), second_new));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root_correction), eps);
    values[i] = __fsub_rn(__fmul_rn(values[i], keep), __fmul_rn(step_size, __fdiv_rn(m, denominator)));
    first[i] = m;
    second[i] = v;
  }
}

// sums[block] = Σ x² in f64 over the block's share; added up on the host in order. Launched with 256 threads.
KERNEL __launch_bounds__(256) squares_sum(const float* __restrict__ values, long long count, double* __restrict__ sums) {
  __shared__ double shares[256];
  double sum = 0.0;
  for (long long i = first_element(); i < count; i += element_step()) sum += double(values[i]) * double(values[i]);
  shares[threadIdx.x] = sum;
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shares[threadIdx.x] += shares[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shares[0];
}

// f32 to bf16, ties to even.
KERNEL __launch_bounds__(256) floats_to_bf16(const float* __restrict__ values, bf16* __restrict__ out, long long count) {
  for (long long i = first_element(); i < count; i += element_step()) out[i] = to_bf16(values[i]);
}
