// csrc/kernels.h: the hot loops of the tree, compiled once for each instruction set and chosen at run time.
//
// All copies give the same bits: sums are integers, and so are masses, however they are computed (mass.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "lines.h"
#include "philox.h"

namespace fastprio {

constexpr int kFanout = 16;  // children of a node, and leaves of a block
constexpr int kShift = 4;    // log2(kFanout)

// Which copy runs: the best one available, unless a test says otherwise.
enum class Isa { kBaseline, kAvx2, kAvx512 };
bool isa_available(Isa isa);
Isa isa();
void use_isa(Isa isa);  // `isa` must be available

// What the loops read of a tree. parked is null where nothing is parked.
struct View {
  const float* leaves;
  const Lines<uint64_t>* levels;
  int level_count;
  int scale;
  bool common;  // whether common_mass may be used
  const uint8_t* parked;
};

struct Kernels {
  // For each r[j] below the total: indices[j] the leaf, masses[j] its mass, and, unless rests is null,
  // rests[j] = r[j] - prefix(leaf). r may be where indices is.
  void (*descend)(const View& tree, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses,
                  uint64_t* rests);
  // Writes the level above the leaves, whose first `blocks` entries are of blocks of leaves, and each node's total.
  void (*sum_leaves)(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals);
  // Adds deltas[j] (modulo 2^64, so it may stand for a negative number) to what stands after child
  // indices[j] >> shift in its node.
  void (*add)(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count);
  // deltas[j] = mass(after[j]) - mass(before[j]), modulo 2^64; bits of priorities.
  void (*deltas)(const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* deltas);
  // out[j] = word(stream, first + j, 0).
  void (*words)(const Stream& stream, uint64_t first, size_t count, uint64_t* out);
  // The bits of the largest priority, -0.0 being 0; at least kInfinityBits if one is not valid.
  uint32_t (*largest)(const float* priorities, size_t count);
};

const Kernels& kernels();

}  // namespace fastprio
