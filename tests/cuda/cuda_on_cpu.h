// Runs CUDA kernels on the host, to test their logic without a GPU.
//
// Every CUDA thread is a fiber with a stack of its own; the blocks of a grid run one after another, and the threads of a
// block take turns at barriers and warp operations. A barrier that not all threads reach stops the program and says
// where each thread waits. Under -fsanitize=thread (scripts/cuda-tsan.sh) every fiber is a thread to the sanitizer and
// only barriers order them, shuffles and votes do not, so that a missing __syncthreads or __syncwarp is a race.
//
// Covered: indices, static and dynamic shared memory, __syncthreads, __syncwarp, shuffles, votes, mma.m16n8k16, ldmatrix,
// cp.async (what it copies is there at the wait, and NaN before), alignment of both, bf16, common mathematics. Not
// covered: speed, coalescing, bank conflicts, races between blocks, the approximations of fast mathematics.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // one block at a time, so one copy serves
#define __constant__ static const
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(on_cpu::dynamic_shared())

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define ON_CPU_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#else
#define ON_CPU_UNCHECKED
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace on_cpu {

enum class State { Runs, AtBlockBarrier, AtWarpBarrier, Done };

struct Fiber {
  void* stack_pointer;
  State state;
  unsigned thread;
  int line;
  unsigned block_waits, warp_waits;  // barriers reached so far
  void* sanitizer;
};

// A copy under way, and the copies of a thread: those not yet committed, and the committed groups, oldest first.
struct Copy { void* to; const void* from; bool valid; };
struct Copies {
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t SLOT_BYTES = 32;  // what a lane can show to its warp at once

struct Machine {
  dim3 grid, block, index;
  std::vector<Fiber> fibers;
  std::vector<char> stacks, dynamic, slots;
  std::vector<Copies> copies;
  // What orders threads to the sanitizer. Barriers take turns with two each: a thread that is at its next one already
  // must not order those that still leave this one.
  std::vector<char> warp_barriers;
  char block_barriers[2] = {}, started = 0, finished = 0;
  bool reversed = false;  // blocks, and threads between barriers, run last to first
  std::function<void()> body;
  size_t current = 0;
  void* host_stack_pointer = nullptr;
  void* host_sanitizer = nullptr;
};
inline Machine machine;

// Saves the callee-saved registers and the stack pointer of one fiber and takes up those of another.
extern "C" void on_cpu_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(.text
.weak on_cpu_switch
.type on_cpu_switch,@function
on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int SAVED_REGISTERS = 6;
#else
#error "cuda_on_cpu.h switches stacks on x86-64 only"
#endif

inline void* dynamic_shared() {
  return reinterpret_cast<void*>((uintptr_t(machine.dynamic.data()) + 127) & ~uintptr_t(127));
}
ON_CPU_UNCHECKED inline Fiber& self() { return machine.fibers.data()[machine.current]; }
ON_CPU_UNCHECKED inline unsigned lane() { return machine.current % 32; }
ON_CPU_UNCHECKED inline size_t warp() { return machine.current / 32; }
ON_CPU_UNCHECKED inline Copies& copies() { return machine.copies.data()[machine.current]; }

ON_CPU_UNCHECKED inline void to_host(Fiber& fiber) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(machine.host_sanitizer, 1);
#endif
  on_cpu_switch(&fiber.stack_pointer, machine.host_stack_pointer);
}

ON_CPU_UNCHECKED inline void to_fiber(Fiber& fiber) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.sanitizer, 1);
#endif
  on_cpu_switch(&machine.host_stack_pointer, fiber.stack_pointer);
}

ON_CPU_UNCHECKED inline void release(void* where) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(where);
#endif
  (void)where;
}
ON_CPU_UNCHECKED inline void acquire(void* where) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(where);
#endif
  (void)where;
}

// Waits until every thread of the block, or every lane of the warp, waits too.
ON_CPU_UNCHECKED inline void meet(State at, int line) {
  Fiber& fiber = self();
  fiber.state = at;
  fiber.line = line;
  to_host(fiber);
}

// The same, and what was written before it is seen after it.
ON_CPU_UNCHECKED inline void wait(State at, int line) {
  Fiber& fiber = self();
  void* barrier = at == State::AtBlockBarrier ? machine.block_barriers + fiber.block_waits++ % 2
                                              : machine.warp_barriers.data() + 2 * warp() + fiber.warp_waits++ % 2;
  release(barrier);
  meet(at, line);
  acquire(barrier);
}

ON_CPU_UNCHECKED inline void enter() {
  acquire(&machine.started);
  machine.body();
  Fiber& fiber = self();
  fiber.state = State::Done;
  release(&machine.finished);
  to_host(fiber);
  abort();
}

[[noreturn]] inline void stuck(size_t threads) {
  fprintf(stderr, "cuda_on_cpu: block %u: a barrier was not reached by all threads:", machine.index.x);
  for (size_t i = 0; i < threads; i++) {
    const Fiber& fiber = machine.fibers[i];
    const char* where = fiber.state == State::Done             ? "done"
                        : fiber.state == State::AtBlockBarrier ? "block barrier, line"
                                                               : "warp barrier, line";
    if (i == 0 || fiber.line != machine.fibers[i - 1].line || fiber.state != machine.fibers[i - 1].state)
      fprintf(stderr, " thread %zu: %s %d;", i, where, fiber.line);
  }
  fprintf(stderr, "\n");
  abort();
}

ON_CPU_UNCHECKED inline void prepare(size_t threads) {
  for (size_t i = 0; i < threads; i++) {
    Fiber& fiber = machine.fibers[i];
    fiber = Fiber{nullptr, State::Runs, unsigned(i), 0, 0, 0, nullptr};
    void** top = reinterpret_cast<void**>((uintptr_t(machine.stacks.data()) + (i + 1) * STACK_BYTES) & ~uintptr_t(15));
    *--top = nullptr;  // enter() finds the alignment that a call would have left
    *--top = reinterpret_cast<void*>(&enter);
    for (int k = 0; k < SAVED_REGISTERS; k++) *--top = nullptr;
    fiber.stack_pointer = top;
#if defined(__SANITIZE_THREAD__)
    fiber.sanitizer = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  machine.host_sanitizer = __tsan_get_current_fiber();
#endif
}

ON_CPU_UNCHECKED inline void run_block(size_t threads) {
  prepare(threads);
  release(&machine.started);
  for (;;) {
    size_t ran = 0, done = 0, waiting = 0;
    for (size_t turn = 0; turn < threads; turn++) {
      const size_t i = machine.reversed ? threads - 1 - turn : turn;
      if (machine.fibers[i].state != State::Runs) continue;
      machine.current = i;
      to_fiber(machine.fibers[i]);
      ran++;
    }
    for (size_t first = 0; first < threads; first += 32) {
      const size_t last = first + 32 < threads ? first + 32 : threads;
      size_t arrived = 0;
      for (size_t i = first; i < last; i++) arrived += machine.fibers[i].state == State::AtWarpBarrier;
      if (arrived != last - first) continue;
      for (size_t i = first; i < last; i++) machine.fibers[i].state = State::Runs;
      ran++;
    }
    for (size_t i = 0; i < threads; i++) {
      done += machine.fibers[i].state == State::Done;
      waiting += machine.fibers[i].state == State::AtBlockBarrier;
    }
    if (done == threads) break;
    if (waiting == threads) {
      for (size_t i = 0; i < threads; i++) machine.fibers[i].state = State::Runs;
    } else if (!ran) {
      stuck(threads);
    }
  }
  acquire(&machine.finished);
#if defined(__SANITIZE_THREAD__)
  for (size_t i = 0; i < threads; i++) __tsan_destroy_fiber(machine.fibers[i].sanitizer);
#endif
}

// Runs a kernel over its grid. Dynamic shared memory starts out as garbage, as on a GPU.
template <class Call>
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, Call call) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  machine.grid = grid;
  machine.block = block;
  machine.fibers.resize(threads);
  machine.stacks.resize(threads * STACK_BYTES + 16);
  machine.slots.resize(threads * SLOT_BYTES);
  machine.copies.assign(threads, Copies{});
  machine.warp_barriers.assign(2 * (threads / 32 + 1), 0);
  machine.dynamic.assign(shared_bytes + 128, char(0xCB));
  machine.body = call;
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  for (size_t turn = 0; turn < blocks; turn++) {
    const size_t i = machine.reversed ? blocks - 1 - turn : turn;
    machine.index = dim3(i % grid.x, i / grid.x % grid.y, i / (size_t(grid.x) * grid.y));
    run_block(threads);
  }
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Parameters... arguments) {
  run_grid(grid, block, shared_bytes, [=] { kernel(arguments...); });
}

// Stops the program unless an address is a multiple of 16 bytes, as vector instructions want it.
inline void check_alignment(const void* address, const char* what) {
  if (uintptr_t(address) % 16 == 0) return;
  fprintf(stderr, "cuda_on_cpu: %s of %p, which is not a multiple of 16\n", what, address);
  abort();
}

// Shows `mine` to the warp and calls `read`, in which shown<T>(lane) is what that lane shows.
template <class T>
ON_CPU_UNCHECKED T shown(unsigned of_lane) {
  T value;
  memcpy(&value, machine.slots.data() + (warp() * 32 + of_lane) * SLOT_BYTES, sizeof value);
  return value;
}
template <class T, class Read>
ON_CPU_UNCHECKED auto with_warp(const T& mine, int line, Read read) {
  static_assert(sizeof(T) <= SLOT_BYTES, "a lane shows at most a slot");
  memcpy(machine.slots.data() + machine.current * SLOT_BYTES, &mine, sizeof mine);
  meet(State::AtWarpBarrier, line);
  const auto result = read();
  meet(State::AtWarpBarrier, line);
  return result;
}
template <class T>
ON_CPU_UNCHECKED T exchange(T mine, unsigned from, int line) {
  return with_warp(mine, line, [=] { return shown<T>(from % 32); });
}

ON_CPU_UNCHECKED inline dim3 thread_index() {
  const unsigned i = self().thread;
  return dim3(i % machine.block.x, i / machine.block.x % machine.block.y, i / (machine.block.x * machine.block.y));
}
ON_CPU_UNCHECKED inline dim3 block_index() { return machine.index; }
ON_CPU_UNCHECKED inline dim3 block_size() { return machine.block; }
ON_CPU_UNCHECKED inline dim3 grid_size() { return machine.grid; }

}  // namespace on_cpu

#define threadIdx (on_cpu::thread_index())
#define blockIdx (on_cpu::block_index())
#define blockDim (on_cpu::block_size())
#define gridDim (on_cpu::grid_size())
#define __syncthreads() on_cpu::wait(on_cpu::State::AtBlockBarrier, __LINE__)
#define __syncwarp(...) on_cpu::wait(on_cpu::State::AtWarpBarrier, __LINE__)
#define __shfl_sync(mask, value, from) on_cpu::exchange((value), (from), __LINE__)
#define __shfl_xor_sync(mask, value, offset) on_cpu::exchange((value), on_cpu::lane() ^ (offset), __LINE__)

// __syncthreads_or: whether any thread of the block says so.
ON_CPU_UNCHECKED inline int on_cpu_any(int flag, int line) {
  static int any;
  any = 0;
  on_cpu::wait(on_cpu::State::AtBlockBarrier, line);
  if (flag) any = 1;
  on_cpu::wait(on_cpu::State::AtBlockBarrier, line);
  const int result = any;
  on_cpu::wait(on_cpu::State::AtBlockBarrier, line);
  return result;
}
#define __syncthreads_or(flag) on_cpu_any((flag), __LINE__)

inline unsigned __ballot_sync(unsigned, int flag) {
  return on_cpu::with_warp(flag, 0, [] {
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++) votes |= unsigned(on_cpu::shown<int>(i) != 0) << i;
    return votes;
  });
}

// Fibers give way at barriers only, so a read and a write need no loop; they are atomic for the sanitizer.
template <class T>
T atomicAdd(T* where, T value) {
  T old, sum;
  __atomic_load(where, &old, __ATOMIC_RELAXED);
  sum = old + value;
  __atomic_store(where, &sum, __ATOMIC_RELAXED);
  return old;
}
template <class T>
T atomicMin(T* where, T value) {
  T old;
  __atomic_load(where, &old, __ATOMIC_RELAXED);
  if (value < old) __atomic_store(where, &value, __ATOMIC_RELAXED);
  return old;
}

template <class T>
T __ldg(const T* where) { return *where; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float fast_exp2(float x) { return exp2f(x); }
template <class T>
T min(T a, T b) { return b < a ? b : a; }
template <class T>
T max(T a, T b) { return a < b ? b : a; }

struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (value != value) return {0x7fff};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// The lanes show their fragments; each computes its four elements (kernel.cuh says who holds what).
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments { uint32_t a[4], b[2]; };
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  struct Sums { float at[4]; };
  const Sums sums = on_cpu::with_warp(mine, 0, [&]() ON_CPU_UNCHECKED {
    const unsigned g = on_cpu::lane() / 4, t = on_cpu::lane() % 4;
    auto half_of = [](uint32_t word, unsigned half) ON_CPU_UNCHECKED {
      return __bfloat162float(__nv_bfloat16{uint16_t(half ? word >> 16 : word)});
    };
    Sums result{{d[0], d[1], d[2], d[3]}};
    for (unsigned k = 0; k < 16; k++) {
      const unsigned holder = k % 8 / 2, upper = k / 8;
      for (unsigned i = 0; i < 4; i++) {
        const uint32_t left = on_cpu::shown<Fragments>(g * 4 + holder).a[upper * 2 + i / 2];
        const uint32_t right = on_cpu::shown<Fragments>((2 * t + i % 2) * 4 + holder).b[upper];
        result.at[i] += half_of(left, k % 2) * half_of(right, k % 2);
      }
    }
    return result;
  });
  for (int i = 0; i < 4; i++) d[i] = sums.at[i];
}

inline void on_cpu_load_tiles(uint32_t (&out)[4], const __nv_bfloat16* row, bool transposed) {
  on_cpu::check_alignment(row, "ldmatrix");
  struct Tiles { uint32_t at[4]; };
  const Tiles tiles = on_cpu::with_warp(row, 0, [=] {
    const unsigned g = on_cpu::lane() / 4, t = on_cpu::lane() % 4;
    Tiles result;
    for (unsigned tile = 0; tile < 4; tile++) {
      auto at = [=](unsigned r, unsigned c) { return on_cpu::shown<const __nv_bfloat16*>(tile * 8 + r)[c].bits; };
      result.at[tile] = transposed ? at(2 * t, g) | uint32_t(at(2 * t + 1, g)) << 16
                                   : at(g, 2 * t) | uint32_t(at(g, 2 * t + 1)) << 16;
    }
    return result;
  });
  for (int i = 0; i < 4; i++) out[i] = tiles.at[i];
}
inline void load_tiles(uint32_t (&out)[4], const __nv_bfloat16* row) { on_cpu_load_tiles(out, row, false); }
inline void load_tiles_transposed(uint32_t (&out)[4], const __nv_bfloat16* row) { on_cpu_load_tiles(out, row, true); }

// What is copied arrives at the wait, as late as it may; until then NaN is there, as early as it may.
inline void copy_async(void* shared, const void* global, bool valid) {
  on_cpu::check_alignment(shared, "cp.async to shared memory");
  if (valid) on_cpu::check_alignment(global, "cp.async from global memory");
  memset(shared, 0xFF, 16);
  on_cpu::copies().open.push_back({shared, global, valid});
}
inline void copy_commit() {
  on_cpu::Copies& copies = on_cpu::copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}
template <int PENDING>
void copy_wait() {
  auto& groups = on_cpu::copies().groups;
  while (groups.size() > PENDING) {
    for (const on_cpu::Copy& copy : groups.front()) {
      if (copy.valid) memcpy(copy.to, copy.from, 16); else memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}
