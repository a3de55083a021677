// Rotary position embedding in place over bf16. The mathematics and the table are in mod.rs.
#include "kernel.cuh"

// x [T, heads * 2 half], positions [T], cos and sin [positions, half]; sign 1 turns forward, -1 back.
KERNEL __launch_bounds__(256) rope_turn(bf16* __restrict__ x, const uint32_t* __restrict__ positions,
                                        const float* __restrict__ cosines, const float* __restrict__ sines,
                                        long long rows, int heads, int half, float sign) {
  const long long pairs = rows * heads * half;
  for (long long pair = first_element(); pair < pairs; pair += element_step()) {
    const int i = pair % half;
    const long long head = pair / half;
    const long long entry = static_cast<long long>(positions[head / heads]) * half + i;
    const float c = cosines[entry], s = sign * sines[entry];
    bf16* const low = x + head * 2 * half + i;
    const float a = to_float(low[0]), b = to_float(low[half]);
    low[0] = to_bf16(a * c - b * s);
    low[half] = to_bf16(b * c + a * s);
  }
}
