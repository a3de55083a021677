// Cross-entropy of a chunk of logits and its gradient, one block a row. The mathematics is in mod.rs.
#include "kernel.cuh"

// loss[row] = ln Σ e^z - z[target]; where `gradient` is there, gradient = (softmax(z) - onehot(target)) * scale in bf16.
// logits [rows, vocabulary] in f32; every target is an id below `vocabulary`.
KERNEL __launch_bounds__(1024) cross_entropy_rows(const float* __restrict__ logits, const int* __restrict__ targets,
                                                  float* __restrict__ loss, bf16* __restrict__ gradient,
                                                  int vocabulary, float scale) {
  const long long row = blockIdx.x;
  logits += row * vocabulary;
  // The largest value so far and the sum of exponentials relative to it, in one pass.
  float largest = -INFINITY, sum = 0.f;
  for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const float z = logits[i];
    if (z > largest) {
      sum = sum * __expf(largest - z) + 1.f;
      largest = z;
    } else if (z != -INFINITY) {
      sum += __expf(z - largest);
    }
  }
  const float top = block_max(largest);
  // A thread without a value has sum 0 and largest -inf: its share is 0, not NaN. A NaN among the logits stays one.
  sum = block_sum(sum == 0.f ? 0.f : sum * __expf(largest - top));
  const int target = targets[row];
  if (threadIdx.x == 0) loss[row] = logf(sum) + top - logits[target];
  if (!gradient) return;
  gradient += row * vocabulary;
  const float inverse = 1.f / sum;
  for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const float p = __expf(logits[i] - top) * inverse;
    gradient[i] = to_bf16((i == target ? p - 1.f : p) * scale);
  }
}
