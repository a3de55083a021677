// Calls a kernel by name with untyped arguments, as a CUDA driver does.
#pragma once
#include "cuda_on_cpu.h"

using Caller = int (*)(dim3 grid, dim3 block, size_t shared_bytes, void** arguments, int count);

struct Entry {
  const char* name;
  Caller call;
};

template <auto kernel>
struct CallerOf;

template <class... Parameters, void (*kernel)(Parameters...)>
struct CallerOf<kernel> {
  template <size_t... I>
  static void run(dim3 grid, dim3 block, size_t shared_bytes, void** arguments, std::index_sequence<I...>) {
    on_cpu::launch(kernel, grid, block, shared_bytes, *static_cast<Parameters*>(arguments[I])...);
  }
  static int call(dim3 grid, dim3 block, size_t shared_bytes, void** arguments, int count) {
    if (count != int(sizeof...(Parameters))) return 2;
    run(grid, block, shared_bytes, arguments, std::index_sequence_for<Parameters...>{});
    return 0;
  }
};

#define caller(kernel) CallerOf<&kernel>::call

// 0, or 1 for an unknown kernel, 2 for a wrong number of arguments.
#define ON_CPU_LAUNCH(entries)                                                                               \
  extern "C" int on_cpu_launch(const char* name, const uint32_t* grid, uint32_t threads, size_t shared_bytes, \
                               void** arguments, int count) {                                                \
    for (const Entry& entry : entries)                                                                       \
      if (!strcmp(entry.name, name))                                                                         \
        return entry.call(dim3(grid[0], grid[1]), dim3(threads), shared_bytes, arguments, count);            \
    return 1;                                                                                                \
  }
