// Dropout with a counter-based mask, and NEFTune's noise, over bf16. The mathematics is in mod.rs.
//
// Invariant: element i looks at word i of the stream, so masks equal those of the CPU and nothing is saved for backward.
#include "kernel.cuh"

// A thread takes the four elements of one Philox call: use(index, word) for each that exists.
template <class Use>
__device__ __forceinline__ void for_words(long long count, uint64_t seed, uint64_t stream, Use use) {
  for (long long call = first_element(); 4 * call < count; call += element_step()) {
    const Words words = philox(call, seed, stream);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (4 * call + i < count) use(4 * call + i, words.at[i]);
    }
  }
}

// out = x * mask * scale; a word below `threshold` drops its element.
KERNEL __launch_bounds__(256) dropout_apply(const bf16* __restrict__ x, bf16* __restrict__ out, long long count,
                                            uint32_t threshold, float scale, uint64_t seed, uint64_t stream) {
  for_words(count, seed, stream, [&](long long i, uint32_t word) {
    out[i] = to_bf16(word < threshold ? 0.f : to_float(x[i]) * scale);
  });
}

// dx += dy * mask * scale.
KERNEL __launch_bounds__(256) dropout_apply_add(const bf16* __restrict__ dy, bf16* __restrict__ dx, long long count,
                                                uint32_t threshold, float scale, uint64_t seed, uint64_t stream) {
  for_words(count, seed, stream, [&](long long i, uint32_t word) {
    if (word >= threshold) dx[i] = to_bf16(to_float(dx[i]) + to_float(dy[i]) * scale);
  });
}

// x += uniform in [-bound, bound).
KERNEL __launch_bounds__(256) dropout_add_uniform(bf16* __restrict__ x, long long count, float bound, uint64_t seed,
                                                  uint64_t stream) {
  for_words(count, seed, stream, [&](long long i, uint32_t word) {
    const float uniform = float(word >> 8) * (1.f / 16777216.f);
    x[i] = to_bf16(to_float(x[i]) + bound * (2.f * uniform - 1.f));
  });
}
