// The gated activation silu(gate) ∘ up over bf16, forward and backward. The mathematics is in mod.rs.
#include "kernel.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + __expf(-x)); }

// activated = silu(gate) * up, two elements a thread; the count is even.
KERNEL __launch_bounds__(256) swiglu_forward(const uint32_t* __restrict__ gate, const uint32_t* __restrict__ up,
                                             uint32_t* __restrict__ activated, long long pairs) {
  for (long long i = first_element(); i < pairs; i += element_step()) {
    const uint32_t g = gate[i], u = up[i];
    const float low = low_half(g), high = high_half(g);
    activated[i] = pack_bf16(low * sigmoid(low) * low_half(u), high * sigmoid(high) * high_half(u));
  }
}

struct SwigluGradients { float gate, up, activated; };

__device__ __forceinline__ SwigluGradients swiglu_gradients(float gate, float up, float gradient) {
  const float s = sigmoid(gate);
  const float silu = gate * s;
  return {gradient * up * (s + silu * (1.f - s)), gradient * silu, silu * up};
}

// gate and up become their gradients; `activated` holds the gradient of the activation and becomes the activation,
// which the gradients of down_proj's adapter need.
KERNEL __launch_bounds__(256) swiglu_backward(uint32_t* __restrict__ gate, uint32_t* __restrict__ up,
                                              uint32_t* __restrict__ activated, long long pairs) {
  for (long long i = first_element(); i < pairs; i += element_step()) {
    const uint32_t g = gate[i], u = up[i], d = activated[i];
    const SwigluGradients low = swiglu_gradients(low_half(g), low_half(u), low_half(d));
    const SwigluGradients high = swiglu_gradients(high_half(g), high_half(u), high_half(d));
    gate[i] = pack_bf16(low.gate, high.gate);
    up[i] = pack_bf16(low.up, high.up);
    activated[i] = pack_bf16(low.activated, high.activated);
  }
}
