// Kernels with one fault each, of the kinds that tsan.cpp must find; part of that program.
#pragma once

// Two threads share an element with no barrier between them.
KERNEL no_barrier(float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x ^ 33];
}

// Memory is used again before everyone has read it: only in the second turn, behind a barrier.
KERNEL no_barrier_before_reuse(float* out) {
  __shared__ float shared[64];
  float sum = 0.f;
  for (int i = 0; i < 3; i++) {
    shared[threadIdx.x] = threadIdx.x + i;
    __syncthreads();
    sum += shared[threadIdx.x ^ 33];
  }
  out[threadIdx.x] = sum;
}

// A shuffle lets lanes meet, but orders no memory.
KERNEL shuffle_for_barrier(float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = threadIdx.x;
  const float sum = warp_sum(1.f);
  out[threadIdx.x] = shared[threadIdx.x ^ 1] + sum;
}

// A copy is read that was never awaited.
KERNEL no_wait(const float* in, float* out) {
  __shared__ __align__(16) float shared[64];
  if (threadIdx.x < 16) copy_async(shared + 4 * threadIdx.x, in + 4 * threadIdx.x, true);
  copy_commit();
  copy_wait<1>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

// Blocks write the same element.
KERNEL blocks_collide(float* out) {
  if (threadIdx.x == 0) out[0] = blockIdx.x;
}

KERNEL vector_misaligned(const float* in, float* out) {
  const uint4 words = *reinterpret_cast<const uint4*>(in + 1);
  out[threadIdx.x] = float(words.x & 1);
}

KERNEL beyond_the_end(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 4]; }

static int run_fault(const std::string& name) {
  check(name.c_str(), [&](Run& run) {
    const float* const in = run.input<float>(64);
    float* const out = run.output<float>(name == "blocks_collide" ? 1 : 64);
    if (name == "no_barrier") return START(no_barrier, 1, 64, 0, out);
    if (name == "no_barrier_before_reuse") return START(no_barrier_before_reuse, 1, 64, 0, out);
    if (name == "shuffle_for_barrier") return START(shuffle_for_barrier, 1, 64, 0, out);
    if (name == "no_wait") return START(no_wait, 1, 64, 0, in, out);
    if (name == "blocks_collide") return START(blocks_collide, 2, 32, 0, out);
    if (name == "vector_misaligned") return START(vector_misaligned, 1, 64, 0, in, out);
    if (name == "beyond_the_end") return START(beyond_the_end, 1, 64, 0, in, out);
    fprintf(stderr, "no fault is called %s\n", name.c_str());
    exit(2);
  });
  return 0;
}
