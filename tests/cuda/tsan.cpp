// Runs every kernel on small odd shapes under ThreadSanitizer; scripts/cuda-tsan.sh builds and calls it.
//
//   tsan              all kernels; prints the name of each
//   tsan FAULT        a kernel with that fault, which must end the program: so it is known that faults are found
//
// A kernel passes when no two of its threads race, nothing outside its buffers is touched, vector accesses are aligned, all
// that it should write is written, and the result is the same bits when blocks and threads run in the opposite order.
#define CUDA_ON_CPU
#include <set>
#include <string>

#include "../../src/ops/attention/attention.cu"
#include "../../src/ops/attention/cached_attention.cu"
#include "../../src/ops/cross_entropy/cross_entropy.cu"
#include "../../src/ops/dropout/dropout.cu"
#include "../../src/ops/embedding/embedding.cu"
#include "../../src/ops/linear/row_product.cu"
#include "../../src/ops/rms_norm/rms_norm.cu"
#include "../../src/ops/rope/rope.cu"
#include "../../src/ops/swiglu/swiglu.cu"
#include "../../src/optim/adamw.cu"
#include "../../src/quant/nf4.cu"
#include "memory.h"

extern "C" const char* __tsan_default_options() { return "halt_on_error=1:exitcode=66:report_signal_unsafe=0"; }

static std::set<std::string> covered;

template <class... Parameters, class... Arguments>
void start(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes,
           Arguments... arguments) {
  covered.insert(name);
  on_cpu::run_grid(grid, threads, shared_bytes, [=] { kernel(arguments...); });
}
#define START(kernel, ...) start(#kernel, kernel, __VA_ARGS__)

// Runs the kernels of `program` in both orders.
template <class Program>
void check(const char* name, Program program) {
  fprintf(stderr, "%s\n", name);
  Run forward, backward;
  on_cpu::machine.reversed = false;
  program(forward);
  on_cpu::machine.reversed = true;
  program(backward);
  const char* fault = forward.has_nan()                            ? "an output is NaN or was not written"
                      : forward.written() != backward.written() ? "the result depends on the order of blocks or threads"
                                                                   : nullptr;
  if (!fault) return;
  fprintf(stderr, "%s: %s\n", name, fault);
  exit(67);
}

// Documents of one row, of a tile and of more, as src/ops/attention/cuda.rs cuts them.
static std::vector<Tile> tiles_of(const std::vector<std::pair<int, int>>& documents) {
  std::vector<Tile> tiles;
  for (const auto& [first, end] : documents)
    for (int row = first; row < end; row += TILE) tiles.push_back({first, end, row, 0});
  return tiles;
}

#define ATTENTION_CASE(D)                                                                                             \
  check("attention of " #D, [](Run& run) {                                                                            \
    const int rows = 71, heads = 2, kv_heads = 1;                                                                     \
    const std::vector<Tile> list = tiles_of({{0, 1}, {1, 71}});                                                       \
    const Tile* const tiles = run.given(list);                                                                        \
    const unsigned count = list.size();                                                                               \
    const float scale = 0.25f;                                                                                        \
    const bf16 *q = run.input<bf16>(rows * heads * D), *k = run.input<bf16>(rows * kv_heads * D),                     \
               *v = run.input<bf16>(rows * kv_heads * D), *dout = run.input<bf16>(rows * heads * D);                  \
    bf16 *out = run.output<bf16>(rows * heads * D), *dq = run.output<bf16>(rows * heads * D),                         \
         *dk = run.output<bf16>(rows * kv_heads * D), *dv = run.output<bf16>(rows * kv_heads * D);                    \
    float *lse = run.output<float>(rows * heads), *delta = run.output<float>(rows * heads);                           \
    const size_t forward = 2 * TILE * STRIDE<D> * sizeof(bf16);                                                       \
    const size_t backward = 2 * (TILE + SMALL_TILE) * STRIDE<D> * sizeof(bf16) + 2 * SMALL_TILE * sizeof(float);      \
    START(attention_forward_##D, dim3(count, heads), THREADS, forward, q, k, v, out, lse, tiles, heads, kv_heads,     \
          scale);                                                                                                     \
    START(attention_delta, (rows * heads + 7) / 8, 256, 0, dout, out, delta, rows* heads, D);                         \
    START(attention_query_gradients_##D, dim3(count, heads), THREADS, backward, q, k, v, dout, lse, delta, dq, tiles, \
          heads, kv_heads, scale);                                                                                    \
    START(attention_key_gradients_##D, dim3(count, kv_heads), THREADS, backward, q, k, v, dout, lse, delta, dk, dv,   \
          tiles, heads, kv_heads, scale);                                                                             \
  })

static void attention_cases() {
  ATTENTION_CASE(16);
  ATTENTION_CASE(32);
  ATTENTION_CASE(64);
  ATTENTION_CASE(96);
  ATTENTION_CASE(128);
  check("attention of one row", [](Run& run) {
    const int length = 131, heads = 4, kv_heads = 2, size = 32, parts = 2;
    const bf16 *q = run.input<bf16>(heads * size), *k = run.input<bf16>(length * kv_heads * size),
               *v = run.input<bf16>(length * kv_heads * size);
    float* const sums = run.output<float>(heads * parts * (size + 2));
    bf16* const out = run.output<bf16>(heads * size);
    START(attention_row_parts, dim3(parts, heads), 128, 0, q, k, v, sums, length, heads, kv_heads, size, 0.25f);
    START(attention_row_whole, heads, 128, 0, sums, out, parts, size);
  });
}

static void row_cases() {
  for (const int vocabulary : {1, 40, 1030})
    check("cross-entropy", [=](Run& run) {
      const float* const logits = run.input<float>(3 * vocabulary);
      const int* const targets = run.input<int>(3, vocabulary);
      float* const loss = run.output<float>(3);
      START(cross_entropy_rows, 3, 1024, 0, logits, targets, loss, run.output<bf16>(3 * vocabulary), vocabulary, 0.5f);
    });
  for (const int features : {8, 200, 2056})
    check("rms norm", [=](Run& run) {
      const int rows = 3;
      bf16* const x = run.changed<bf16>(rows * features);
      const bf16* const delta = run.input<bf16>(rows * features);
      const float* const weight = run.input<float>(features);
      float* const inverse = run.output<float>(rows);
      bf16* const y = run.output<bf16>(rows * features);
      START(rms_norm_forward, rows, 256, 0, x, delta, weight, y, inverse, features, 1e-5f);
      START(rms_norm_backward, rows, 256, 0, x, inverse, weight, y, run.changed<bf16>(rows * features), features);
    });
  check("gather and scatter", [](Run& run) {
    const uint32_t* const ids = run.given<uint32_t>({8, 0, 3, 5, 1});
    uint4* const rows = run.output<uint4>(5 * 3);
    START(rows_gather, 1, 256, 0, run.input<uint4>(9 * 3), ids, rows, 5, 24);
    START(rows_scatter, 2, 256, 0, rows, ids, run.changed<uint4>(9 * 3), 5, 24);
  });
}

static void element_cases() {
  for (const int count : {1, 4, 1027})
    check("dropout", [=](Run& run) {
      const bf16* const x = run.input<bf16>(count);
      START(dropout_apply, 1, 256, 0, x, run.output<bf16>(count), count, 1u << 30, 2.f, 5, 7);
      START(dropout_apply_add, 2, 256, 0, x, run.changed<bf16>(count), count, 1u << 30, 2.f, 5, 7);
      START(dropout_add_uniform, 2, 256, 0, run.changed<bf16>(count), count, 0.5f, 5, 7);
    });
  check("bias", [](Run& run) { START(bias_add, 2, 256, 0, run.changed<bf16>(7 * 93), run.input<float>(93), 7 * 93, 93); });
  for (const int stored : {STORED_F32, STORED_F16, STORED_BF16})
    check("weights to bf16", [=](Run& run) {
      const void* values = run.input<float>(333);
      if (stored == STORED_F16) values = run.input<uint16_t>(333, 0x7c00);
      if (stored == STORED_BF16) values = run.input<bf16>(333);
      START(weights_to_bf16, 1, 256, 0, values, stored, run.output<bf16>(333), 333);
    });
  check("rope", [](Run& run) {
    const uint32_t* const positions = run.input<uint32_t>(7, 30);
    const float *cosines = run.input<float>(30 * 9), *sines = run.input<float>(30 * 9);
    START(rope_turn, 2, 256, 0, run.changed<bf16>(7 * 3 * 18), positions, cosines, sines, 7, 3, 9, -1.f);
  });
  check("swiglu", [](Run& run) {
    auto pairs = [&] { return reinterpret_cast<uint32_t*>(run.changed<bf16>(2 * 333)); };
    uint32_t *gate = pairs(), *up = pairs(), *activated = pairs();
    START(swiglu_forward, 1, 256, 0, gate, up, activated, 333);
    START(swiglu_backward, 2, 256, 0, gate, up, activated, 333);
  });
  check("f32 to bf16", [](Run& run) {
    START(floats_to_bf16, 1, 256, 0, run.input<float>(333), run.output<bf16>(333), 333);
  });
}

static void optimizer_cases() {
  check("adamw", [](Run& run) {
    std::vector<Piece> list;
    for (const uint32_t length : {1u, 31u, 64u, 300u}) {
      Piece piece{run.changed<float>(length), run.changed<float>(length), run.changed<float>(length),
                  run.changed<float>(length), run.output<bf16>(length),   length,
                  length % 2};
      for (uint32_t i = 0; i < length; i++) piece.second[i] = fabsf(piece.second[i]);
      list.push_back(piece);
    }
    const Piece* const pieces = run.given(list);
    const float* const factors =
        run.given<float>({1, 0.9f, 0.1f, 0.99f, 0.01f, 1e-3f, 1, 1e-8f, 0.5f, 1, 0.1f, 0.99f, 0.01f, 1e-3f, 1, 1e-8f});
    START(gradient_squares, 1, 256, 0, pieces, 4, run.output<double>(4));
    START(adamw_update, 4, 256, 0, pieces, factors);
    START(clear_gradients, 4, 256, 0, pieces);
  });
}

// Two values that are not finite in one block, so that its lanes meet in atomicMin; a last block of `count % block`.
static void nf4_cases() {
  for (const int stored : {STORED_F32, STORED_F16, STORED_BF16})
    check("nf4", [=](Run& run) {
      const int count = 64 * 300 + 13, block = 64, shift = 6, blocks = 301, nested_blocks = 2;
      const void* values = run.input<float>(count);
      if (stored == STORED_F16) values = run.input<uint16_t>(count, 0x3c00);
      if (stored == STORED_BF16) values = run.input<bf16>(count);
      uint8_t* const packed = run.output<uint8_t>((count + 1) / 2);
      float* const absmax = run.output<float>(blocks);
      auto* const bad = run.given<unsigned long long>({~0ull});
      START(nf4_quantize, (blocks + 7) / 8, 256, 0, values, stored, count, block, packed, absmax, bad);
      double* const parts = run.output<double>(1);
      float* const offset = run.output<float>(1);
      START(nf4_scale_sums, 1, 32, 0, absmax, blocks, parts);
      START(nf4_scale_mean, 1, 32, 0, parts, 1, blocks, offset);
      uint8_t* const codes = run.output<uint8_t>(blocks);
      float* const nested = run.output<float>(nested_blocks);
      START(nf4_scale_codes, nested_blocks, 256, 0, absmax, blocks, offset, run.input<uint8_t>(65536), codes, nested);
      const float* const map = run.input<float>(256);
      const float* const none = nullptr;
      bf16 *plain = run.output<bf16>(count), *twice = run.output<bf16>(count);
      START(nf4_dequantize, 3, 256, 0, packed, absmax, codes, nested, map, *offset, count, shift, stored, plain);
      START(nf4_dequantize, 3, 256, 0, packed, none, codes, nested, map, *offset, count, shift, stored, twice);
    });
  check("values that are not finite", [](Run& run) {
    float* const values = run.input<float>(70);
    values[9] = values[40] = values[66] = INFINITY;
    auto* const bad = run.given<unsigned long long>({~0ull});
    START(nf4_quantize, 1, 256, 0, values, STORED_F32, 70, 64, run.input<uint8_t>(35), run.input<float>(2), bad);
    if (*bad != 9) {
      fprintf(stderr, "the first bad value is %llu for 9\n", *bad);
      exit(67);
    }
  });
}

static void linear_cases() {
  for (const int columns : {8, 40, 1056})
    check("row product", [=](Run& run) {
      const int rows = 9, rank = 33, blocks = (rows * columns + 31) / 32;
      const uint8_t *packed = run.input<uint8_t>(rows * columns / 2), *codes = run.input<uint8_t>(blocks);
      const float *nested = run.input<float>((blocks + 255) / 256), *map = run.input<float>(256), *none = nullptr;
      const bf16 *x = run.input<bf16>(columns), *b = run.input<bf16>(rows * rank), *u = run.input<bf16>(rank);
      const float* const bias = run.input<float>(rows);
      for (const int accumulate : {0, 1}) {
        START(nf4_row_product_narrow, 2, 256, 0, packed, none, codes, nested, map, 0.1f, 5, x, run.changed<bf16>(rows),
              rows, columns, bias, b, u, rank, 0.5f, accumulate);
        START(dense_row_product, 2, 256, 0, run.input<bf16>(rows * columns), x, run.changed<bf16>(rows),
              accumulate ? nullptr : run.output<float>(rows), rows, columns, bias, b, u, rank, 0.5f, accumulate);
        if (columns % 32) continue;
        START(nf4_row_product, 2, 256, 0, packed, none, codes, nested, map, 0.1f, 5, x, run.changed<bf16>(rows), rows,
              columns, bias, b, u, rank, 0.5f, accumulate);
      }
    });
}

#include "faults.h"

int main(int count, char** arguments) {
  if (count == 2) return run_fault(arguments[1]);
  row_cases();
  element_cases();
  optimizer_cases();
  nf4_cases();
  linear_cases();
  attention_cases();
  for (const std::string& name : covered) printf("%s\n", name.c_str());
}
