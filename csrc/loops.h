// csrc/loops.h: the hot loops, written in terms of the steps that avx512.h, avx2.h or baseline.h gives. Not a header of
// its own: kernels.cpp includes it once for each instruction set, after the steps, in a namespace of that set.
//
//   Masses                                 a block's masses
//   load, store, common_masses             from masses one by one, to them, from leaves as in mass.h
//   without, sum                           some of them made zero; their sum
//   pick_child, pick_leaf                  what r falls in
//   add_after                              adds to the entries after a child
//   kBlocks, words_of_blocks               Philox, some blocks side by side

// Searches go down together, level by level, so that their cache misses overlap: as many as leave room in the first
// cache for the lines that they have asked for.
constexpr size_t kInFlight = 128;
constexpr size_t kNearby = 4096;  // a level of so many entries at most stays in the first cache anyway

inline Masses block_masses(const View& tree, uint64_t block) {
  const float* leaves = tree.leaves + block * kFanout;
  Masses masses;
  if (tree.common) {
    masses = common_masses(leaves, tree.scale);
  } else {
    uint32_t each[kFanout];
    for (int c = 0; c < kFanout; ++c) each[c] = mass(std::bit_cast<uint32_t>(leaves[c]), tree.scale);
    masses = load(each);
  }
  if (!tree.parked) return masses;
  return without(masses, tree.parked[2 * block] | uint32_t{tree.parked[2 * block + 1]} << 8);
}

// One level down: at[q] is the first entry of the node where search q stands, then the first entry (or leaf) of the
// child that from[q] falls in, of which `lines` cache lines are asked for. The constants are known where it is inlined.
inline __attribute__((always_inline)) void step_down(const uint64_t* sums, const uint64_t* from, size_t n, uint64_t* at,
                                                     uint64_t* rest, const void* below, size_t entry_bytes, int lines) {
  for (size_t q = 0; q < n; ++q) {
    uint64_t r = from[q];
    at[q] = (at[q] + pick_child(sums + at[q], r)) * kFanout;
    rest[q] = r;
    const char* next = static_cast<const char*>(below) + at[q] * entry_bytes;
    if (lines > 0) __builtin_prefetch(next);
    if (lines > 1) __builtin_prefetch(next + 64);
  }
}

// The leaf that rest[q] falls in, of the block that starts at at[q]. plain: nothing uncommon, nothing parked.
inline __attribute__((always_inline)) void pick_leaves(const View& tree, bool plain, const uint64_t* at,
                                                       const uint64_t* rest, size_t n, int64_t* indices,
                                                       uint32_t* masses, uint64_t* rests) {
  for (size_t q = 0; q < n; ++q) {
    const Masses block = plain ? common_masses(tree.leaves + at[q], tree.scale) : block_masses(tree, at[q] / kFanout);
    const uint64_t child = pick_leaf(block, rest[q]);
    alignas(64) uint32_t each[kFanout];
    store(block, each);
    indices[q] = int64_t(at[q] + child);
    masses[q] = each[child];
    if (rests) rests[q] = rest[q] - sum(without(block, 0xFFFFu << child));
  }
}

void descend(const View& given, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses, uint64_t* rests) {
  const View tree = given;  // a copy, because for all that the compiler knows `indices` points into the original
  for (size_t first = 0; first < count; first += kInFlight) {
    const size_t n = count - first < kInFlight ? count - first : kInFlight;
    uint64_t at[kInFlight] = {}, rest[kInFlight];
    const uint64_t* from = r + first;
    for (int k = tree.level_count - 1; k > 0; --k, from = rest) {
      const uint64_t *sums = tree.levels[k].data(), *below = tree.levels[k - 1].data();
      if (tree.levels[k - 1].size() <= kNearby)
        step_down(sums, from, n, at, rest, below, sizeof(uint64_t), 0);
      else
        step_down(sums, from, n, at, rest, below, sizeof(uint64_t), 2);
    }
    step_down(tree.levels[0].data(), from, n, at, rest, tree.leaves, sizeof(float), 1);
    if (tree.common && !tree.parked)
      pick_leaves(tree, true, at, rest, n, indices + first, masses + first, rests ? rests + first : nullptr);
    else
      pick_leaves(tree, false, at, rest, n, indices + first, masses + first, rests ? rests + first : nullptr);
  }
}

void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  uint64_t before = 0;
  for (uint64_t b = 0; b < (blocks + kFanout - 1) / kFanout * kFanout; ++b) {
    if (b % kFanout == 0) before = 0;
    level[b] = before;
    if (b < blocks) before += sum(block_masses(tree, b));
    totals[b / kFanout] = before;
  }
}

void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count) {
  for (size_t j = 0; j < count; ++j) {
    const uint64_t i = uint64_t(indices[j]) >> shift;
    add_after(level + i / kFanout * kFanout, i % kFanout, deltas[j]);
  }
}

void deltas(const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* out) {
  const int scale = tree.scale;
  const float factor = common_factor(scale);
  if (tree.common)
    for (size_t j = 0; j < count; ++j)
      out[j] = uint64_t{common_mass(std::bit_cast<float>(after[j]), factor)} -
               common_mass(std::bit_cast<float>(before[j]), factor);
  else
    for (size_t j = 0; j < count; ++j) out[j] = uint64_t{mass(after[j], scale)} - mass(before[j], scale);
}

void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) {
  size_t done = 0;
  if (count > 0 && (first & 1)) out[done++] = word(stream, first, 0);
  for (; count - done >= 2 * kBlocks; done += 2 * kBlocks) words_of_blocks(stream, (first + done) >> 1, out + done);
  if (done == count) return;
  uint64_t last[2 * kBlocks];
  words_of_blocks(stream, (first + done) >> 1, last);
  for (size_t j = 0; done < count; ++j) out[done++] = last[j];
}

uint32_t largest(const float* priorities, size_t count) {
  int32_t most = 0, negative = 0;
  for (size_t j = 0; j < count; ++j) {
    const int32_t bits = std::bit_cast<int32_t>(priorities[j]);
    most = std::max(most, bits);
    negative |= bits & -(bits & 0x7FFFFFFF);  // -magnitude has the sign bit unless the magnitude is 0
  }
  return uint32_t(most) | (uint32_t(negative) & kNegativeZeroBits);
}

constexpr Kernels table{descend, sum_leaves, add, deltas, words, largest};
