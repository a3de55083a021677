// Memory of the emulated GPU for programs in C++: what a kernel gets, and what must come of it.
//
// Invariant: a buffer ends where a page begins that may not be touched (its size rounded up to 16 bytes), so that reading
// or writing beyond it stops the program; what nobody has written is NaN.
#pragma once
#include <sys/mman.h>

#include "launch.h"

// The buffers of one run of a kernel, and copies of what it wrote.
class Run {
 public:
  Run() = default;
  Run(const Run&) = delete;
  ~Run() {
    for (const auto& [start, bytes] : mappings) munmap(start, bytes);
  }

  // `count` values of a fixed sequence that lies in [-1, 1), or below `limit` for integers.
  template <class T>
  T* input(size_t count, uint64_t limit = 256) {
    T* const values = empty<T>(count);
    for (size_t i = 0; i < count; i++) set(values[i], limit);
    return values;
  }

  // `count` values that nobody has written.
  template <class T>
  T* output(size_t count) {
    T* const values = empty<T>(count);
    watch(values, count);
    return values;
  }

  // `count` values of the sequence, which the kernel changes.
  template <class T>
  T* changed(size_t count) {
    T* const values = input<T>(count);
    watch(values, count);
    return values;
  }

  // These values, not written to.
  template <class T>
  T* given(const std::vector<T>& values) {
    T* const copy = empty<T>(values.size());
    memcpy(copy, values.data(), sizeof(T) * values.size());
    return copy;
  }

  // The bytes of all outputs.
  std::vector<uint8_t> written() const {
    std::vector<uint8_t> all;
    for (const Watched& one : watched) all.insert(all.end(), one.start, one.start + one.bytes);
    return all;
  }

  // Whether a float or bf16 among the outputs is NaN or infinite, as those that nobody wrote are.
  bool has_nan() const {
    for (const Watched& one : watched)
      if (one.has_nan(one.start, one.bytes)) return true;
    return false;
  }

  template <class T>
  void watch(const T* values, size_t count) {
    watched.push_back({reinterpret_cast<const uint8_t*>(values), sizeof(T) * count, &any_nan<T>});
  }

 private:
  struct Watched {
    const uint8_t* start;
    size_t bytes;
    bool (*has_nan)(const uint8_t*, size_t);
  };
  std::vector<std::pair<void*, size_t>> mappings;
  std::vector<Watched> watched;
  uint64_t state = 1;

  template <class T>
  T* empty(size_t count) {
    constexpr size_t PAGE = 4096;
    const size_t bytes = (sizeof(T) * count + 15) / 16 * 16, pages = (bytes + PAGE - 1) / PAGE * PAGE;
    void* const start = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + pages, PAGE, PROT_NONE)) {
      perror("memory for a kernel");
      exit(1);
    }
    mappings.emplace_back(start, pages + PAGE);
    memset(start, 0xFF, pages);
    return reinterpret_cast<T*>(static_cast<char*>(start) + pages - bytes);
  }

  uint64_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  }
  void set(float& value, uint64_t) { value = float(next() % 2048) / 1024.f - 1.f; }
  void set(double& value, uint64_t limit) {
    float narrow;
    set(narrow, limit);
    value = narrow;
  }
  void set(__nv_bfloat16& value, uint64_t limit) {
    float wide;
    set(wide, limit);
    value = __float2bfloat16_rn(wide);
  }
  void set(uint4& value, uint64_t limit) {
    auto* const eight = reinterpret_cast<__nv_bfloat16*>(&value);
    for (int i = 0; i < 8; i++) set(eight[i], limit);
  }
  template <class T>
  void set(T& value, uint64_t limit) { value = T(next() % limit); }

  template <class T>
  static bool any_nan(const uint8_t* start, size_t bytes) {
    for (size_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
      T value;
      memcpy(&value, start + i, sizeof value);
      if (!finite(value)) return true;
    }
    return false;
  }
  static bool finite(float value) { return std::isfinite(value); }
  static bool finite(double value) { return std::isfinite(value); }
  static bool finite(__nv_bfloat16 value) { return std::isfinite(__bfloat162float(value)); }
  template <class T>
  static bool finite(const T&) { return true; }
};
