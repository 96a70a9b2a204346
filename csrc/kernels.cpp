// csrc/kernels.cpp: the loops themselves.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <bit>

#include "mass.h"

namespace fastprio {
namespace {

constexpr size_t kInFlight = 32;  // searches that go down together, so that their cache misses overlap

// kAfter[c][j] selects, for child c, the entries j that stand after it in a node.
alignas(64) constexpr auto kAfter = [] {
  std::array<std::array<uint64_t, kFanout>, kFanout> masks{};
  for (uint64_t c = 0; c < kFanout; ++c)
    for (uint64_t j = 0; j < kFanout; ++j) masks[c][j] = j > c ? ~uint64_t{0} : 0;
  return masks;
}();

// The child of a node that r falls in; r becomes the rest within it. Entry c of a node is the sum of the children
// before c, so it is the last entry that is not above r: four steps of binary search, free of branches. A child
// without mass is passed over, because the next entry is the same.
inline __attribute__((always_inline)) uint64_t pick_child(const uint64_t* node, uint64_t& r) {
  uint64_t child = node[8] <= r ? 8 : 0;
  child += node[child + 4] <= r ? 4 : 0;
  child += node[child + 2] <= r ? 2 : 0;
  child += node[child + 1] <= r ? 1 : 0;
  r -= node[child];
  return child;
}

// The same among sixteen masses, which are added up first.
inline __attribute__((always_inline)) uint64_t pick_leaf(const uint32_t* masses, uint64_t& r) {
  uint64_t node[kFanout], before = 0;
  for (uint64_t c = 0; c < kFanout; ++c) {
    node[c] = before;
    before += masses[c];
  }
  return pick_child(node, r);
}

// Vectors of sums, of the compiler's own type: a written-out loop over a node it fails to make one of. As wide as the
// instruction set has them, because wider ones are taken apart badly.
using Sums16 [[gnu::vector_size(16), gnu::aligned(16), gnu::may_alias]] = uint64_t;
using Sums32 [[gnu::vector_size(32), gnu::aligned(32), gnu::may_alias]] = uint64_t;

template <class Sums>
inline __attribute__((always_inline)) void add_loop(uint64_t* level, const int64_t* indices, int shift,
                                                    const uint64_t* deltas, size_t count) {
  for (size_t j = 0; j < count; ++j) {
    const uint64_t i = uint64_t(indices[j]) >> shift, delta = deltas[j];
    auto* node = reinterpret_cast<Sums*>(level + i / kFanout * kFanout);
    const auto* after = reinterpret_cast<const Sums*>(kAfter[i % kFanout].data());
    for (size_t v = 0; v < kFanout * sizeof(uint64_t) / sizeof(Sums); ++v) node[v] += after[v] & delta;
  }
}

inline __attribute__((always_inline)) void block_masses(const View& tree, uint64_t block, uint32_t* masses) {
  const float* leaves = tree.leaves + block * kFanout;
  if (tree.common)
    for (uint64_t c = 0; c < kFanout; ++c) masses[c] = common_mass(std::bit_cast<uint32_t>(leaves[c]), tree.scale);
  else
    for (uint64_t c = 0; c < kFanout; ++c) masses[c] = mass(std::bit_cast<uint32_t>(leaves[c]), tree.scale);
  if (!tree.parked) return;
  for (uint64_t c = 0; c < kFanout; ++c) {
    const uint64_t i = block * kFanout + c;
    if (tree.parked[i >> 3] >> (i & 7) & 1) masses[c] = 0;
  }
}

inline __attribute__((always_inline)) void descend_loop(const View& tree, const uint64_t* r, size_t count,
                                                        int64_t* indices, uint32_t* masses, uint64_t* rests) {
  uint64_t node[kInFlight], rest[kInFlight];
  for (size_t first = 0; first < count; first += kInFlight) {
    const size_t n = std::min(kInFlight, count - first);
    for (size_t q = 0; q < n; ++q) {
      node[q] = 0;
      rest[q] = r[first + q];
    }
    for (int k = tree.level_count - 1; k >= 0; --k) {
      const uint64_t* sums = tree.levels[k].data();
      for (size_t q = 0; q < n; ++q) {
        node[q] = node[q] * kFanout + pick_child(sums + node[q] * kFanout, rest[q]);
        if (k > 0) {
          const uint64_t* next = tree.levels[k - 1].data() + node[q] * kFanout;
          __builtin_prefetch(next);
          __builtin_prefetch(next + kFanout / 2);
        } else {
          __builtin_prefetch(tree.leaves + node[q] * kFanout);
        }
      }
    }
    for (size_t q = 0; q < n; ++q) {
      uint32_t block[kFanout];
      block_masses(tree, node[q], block);
      const uint64_t child = pick_leaf(block, rest[q]);
      indices[first + q] = int64_t(node[q] * kFanout + child);
      masses[first + q] = block[child];
      rests[first + q] = rest[q];
    }
  }
}

inline __attribute__((always_inline)) void deltas_loop(const View& tree, const uint32_t* before, const uint32_t* after,
                                                       size_t count, uint64_t* deltas) {
  if (tree.common)
    for (size_t j = 0; j < count; ++j)
      deltas[j] = uint64_t{common_mass(after[j], tree.scale)} - common_mass(before[j], tree.scale);
  else
    for (size_t j = 0; j < count; ++j) deltas[j] = uint64_t{mass(after[j], tree.scale)} - mass(before[j], tree.scale);
}

inline __attribute__((always_inline)) void sum_leaves_loop(const View& tree, uint64_t blocks, uint64_t* level,
                                                           uint64_t* totals) {
  uint64_t before = 0;
  for (uint64_t b = 0; b < (blocks + kFanout - 1) / kFanout * kFanout; ++b) {
    if (b % kFanout == 0) before = 0;
    level[b] = before;
    if (b < blocks) {
      uint32_t masses[kFanout];
      block_masses(tree, b, masses);
      for (uint64_t c = 0; c < kFanout; ++c) before += masses[c];
    }
    totals[b / kFanout] = before;
  }
}

namespace baseline {
void descend(const View& tree, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses, uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count) {
  add_loop<Sums16>(level, indices, shift, deltas, count);
}
void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) { fill_words(stream, first, count, out); }
void deltas(const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels table{descend, sum_leaves, add, deltas, words};
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
[[gnu::target("avx2,bmi,bmi2")]] void descend(const View& tree, const uint64_t* r, size_t count, int64_t* indices,
                                              uint32_t* masses, uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
[[gnu::target("avx2,bmi,bmi2")]] void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
[[gnu::target("avx2,bmi,bmi2")]] void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas,
                                          size_t count) {
  add_loop<Sums32>(level, indices, shift, deltas, count);
}
[[gnu::target("avx2,bmi,bmi2")]] void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) {
  fill_words(stream, first, count, out);
}
[[gnu::target("avx2,bmi,bmi2")]] void deltas(const View& tree, const uint32_t* before, const uint32_t* after,
                                             size_t count, uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels table{descend, sum_leaves, add, deltas, words};
}  // namespace avx2
namespace avx512 {
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void descend(const View& tree, const uint64_t* r,
                                                                                 size_t count, int64_t* indices,
                                                                                 uint32_t* masses, uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void sum_leaves(const View& tree, uint64_t blocks,
                                                                                    uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void add(uint64_t* level, const int64_t* indices,
                                                                             int shift, const uint64_t* deltas,
                                                                             size_t count) {
  add_loop<Sums32>(level, indices, shift, deltas, count);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void words(const Stream& stream, uint64_t first,
                                                                               size_t count, uint64_t* out) {
  fill_words(stream, first, count, out);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void deltas(const View& tree,
                                                                                const uint32_t* before,
                                                                                const uint32_t* after, size_t count,
                                                                                uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels table{descend, sum_leaves, add, deltas, words};
}  // namespace avx512
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
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
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
