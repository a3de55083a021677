// AdamW, the gradients' sum of squares and their zeros, each over all parameters in one launch; f32 to bf16.
//
// Parameters are cut into pieces, each of one parameter and one block's work. A piece is six words: the addresses of its
// masters, gradients, first and second moments and bf16 values, and its length with the row of its factors in the high half.
//
// Invariant: no operation is contracted and sums have the order of src/optim/clip.rs, so the values equal those of
// src/optim/adamw.rs bit for bit.
#include "kernel.cuh"

struct Piece {
  float* masters;
  float* gradients;
  float* first;
  float* second;
  bf16* values;
  uint32_t length;
  uint32_t group;
};

// One update of every parameter, and its bf16 values. factors[group] are the eight numbers of adamw.rs, in its order.
KERNEL __launch_bounds__(256) adamw_update(const Piece* __restrict__ pieces, const float* __restrict__ factors) {
  const Piece piece = pieces[blockIdx.x];
  const float* const f = factors + 8 * piece.group;
  const float gradient_scale = f[0], keep = f[1], first_new = f[2], second_old = f[3];
  const float second_new = f[4], step_size = f[5], root_correction = f[6], eps = f[7];
  for (uint32_t i = threadIdx.x; i < piece.length; i += blockDim.x) {
    const float g = __fmul_rn(piece.gradients[i], gradient_scale);
    const float old = piece.first[i];
    const float m = __fadd_rn(old, __fmul_rn(__fsub_rn(g, old), first_new));
    const float v = __fadd_rn(__fmul_rn(piece.second[i], second_old), __fmul_rn(__fmul_rn(g, g), second_new));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root_correction), eps);
    const float value =
        __fsub_rn(__fmul_rn(piece.masters[i], keep), __fmul_rn(step_size, __fdiv_rn(m, denominator)));
    piece.masters[i] = value;
    piece.values[i] = to_bf16(value);
    piece.first[i] = m;
    piece.second[i] = v;
  }
}

// sums[piece] = Σ gradient² in f64: 32 running sums over the whole groups of 32, added in order, then those of the rest.
// A warp a piece.
KERNEL __launch_bounds__(256) gradient_squares(const Piece* __restrict__ pieces, uint32_t count,
                                               double* __restrict__ sums) {
  __shared__ double shares[8][32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const uint32_t index = blockIdx.x * 8 + warp;
  if (index >= count) return;
  const Piece piece = pieces[index];
  const uint32_t whole = piece.length / 32 * 32;
  double sum = 0.0;
  // The square of an f32 is exact in f64, so that it is the same whether the compiler contracts it or not.
  for (uint32_t i = lane; i < whole; i += 32) sum += double(piece.gradients[i]) * double(piece.gradients[i]);
  shares[warp][lane] = sum;
  __syncwarp();
  if (lane > 0) return;
  double total = 0.0, rest = 0.0;
  for (int i = 0; i < 32; i++) total += shares[warp][i];
  for (uint32_t i = whole; i < piece.length; i++) rest += double(piece.gradients[i]) * double(piece.gradients[i]);
  sums[index] = total + rest;
}

// Sets all gradients to zero.
KERNEL __launch_bounds__(256) clear_gradients(const Piece* __restrict__ pieces) {
  const Piece piece = pieces[blockIdx.x];
  for (uint32_t i = threadIdx.x; i < piece.length; i += blockDim.x) piece.gradients[i] = 0.f;
}

// f32 to bf16, ties to even.
KERNEL __launch_bounds__(256) floats_to_bf16(const float* __restrict__ values, bf16* __restrict__ out, long long count) {
  for (long long i = first_element(); i < count; i += element_step()) out[i] = to_bf16(values[i]);
}
