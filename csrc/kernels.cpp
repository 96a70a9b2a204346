// csrc/kernels.cpp: loops.h compiled for each instruction set, and the choice between them.
#include "kernels.h"

#include <array>
#include <bit>

#include "mass.h"

// What stands between TARGET_BEGIN and TARGET_END is compiled for that instruction set.
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(set) PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(set) PRAGMA(GCC push_options) PRAGMA(GCC target(set))
#define TARGET_END PRAGMA(GCC pop_options)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 warns of its own header: its bug 105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace fastprio {
namespace {

// kAfter[c][j] selects, for child c, the entries j that stand after it in a node.
alignas(64) constexpr auto kAfter = [] {
  std::array<std::array<uint64_t, kFanout>, kFanout> masks{};
  for (uint64_t c = 0; c < kFanout; ++c)
    for (uint64_t j = 0; j < kFanout; ++j) masks[c][j] = j > c ? ~uint64_t{0} : 0;
  return masks;
}();

namespace baseline {
#include "baseline.h"
#include "loops.h"
}  // namespace baseline

#if defined(__x86_64__)
TARGET_BEGIN("avx2,bmi,bmi2,popcnt")
namespace avx2 {
#include "avx2.h"
#include "loops.h"
}  // namespace avx2
TARGET_END

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt")
namespace avx512 {
#include "avx512.h"
#include "loops.h"
}  // namespace avx512
TARGET_END
#endif

Isa best_isa() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2})
    if (isa_available(isa)) return isa;
  return Isa::kBaseline;
}

Isa current_isa = best_isa();

}  // namespace

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && isa_available(Isa::kAvx2);
  if (isa == Isa::kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt");
#endif
  return isa == Isa::kBaseline;
}

const Kernels& kernels() {
#if defined(__x86_64__)
  if (current_isa == Isa::kAvx512) return avx512::table;
  if (current_isa == Isa::kAvx2) return avx2::table;
#endif
  return baseline::table;
}

Isa isa() { return current_isa; }
void use_isa(Isa isa) { current_isa = isa; }

}  // namespace fastprio
