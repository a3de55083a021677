// Rows by index: the embedding, and the rows with a target on their way to the head and back.
#include "kernel.cuh"

// out [T,H] = table[ids[t]], sixteen bytes a thread; features is a multiple of 8.
KERNEL __launch_bounds__(256) rows_gather(const uint4* __restrict__ table, const uint32_t* __restrict__ ids,
                                          uint4* __restrict__ out, long long rows, int features) {
  const int pieces = features / 8;
  for (long long i = first_element(); i < rows * pieces; i += element_step()) {
    out[i] = table[static_cast<long long>(ids[i / pieces]) * pieces + i % pieces];
  }
}

// out[ids[t]] = rows[t]; rows of `out` that no id names stay as they are. Ids are distinct.
KERNEL __launch_bounds__(256) rows_scatter(const uint4* __restrict__ in, const uint32_t* __restrict__ ids,
                                           uint4* __restrict__ out, long long rows, int features) {
  const int pieces = features / 8;
  for (long long i = first_element(); i < rows * pieces; i += element_step()) {
    out[static_cast<long long>(ids[i / pieces]) * pieces + i % pieces] = in[i];
  }
}

// Stored weights of any dtype to bf16.
KERNEL __launch_bounds__(256) weights_to_bf16(const void* __restrict__ values, int stored, bf16* __restrict__ out,
                                              long long count) {
  for (long long i = first_element(); i < count; i += element_step()) out[i] = to_bf16(load_stored(values, stored, i));
}

// x [T,N] += bias [N].
KERNEL __launch_bounds__(256) bias_add(bf16* __restrict__ x, const float* __restrict__ bias, long long count, int columns) {
  for (long long i = first_element(); i < count; i += element_step()) {
    x[i] = to_bf16(to_float(x[i]) + bias[i % columns]);
  }
}
