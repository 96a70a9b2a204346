// csrc/baseline.h: the steps of loops.h in plain C++. Not a header of its own: see kernels.cpp.

struct Masses {
  uint32_t each[kFanout];
};

inline Masses load(const uint32_t* masses) {
  Masses loaded;
  for (int c = 0; c < kFanout; ++c) loaded.each[c] = masses[c];
  return loaded;
}
inline void store(const Masses& masses, uint32_t* to) {
  for (int c = 0; c < kFanout; ++c) to[c] = masses.each[c];
}
inline Masses without(Masses masses, uint32_t parked) {
  for (int c = 0; c < kFanout; ++c) masses.each[c] = parked >> c & 1 ? 0 : masses.each[c];
  return masses;
}
inline Masses common_masses(const float* leaves, int scale) {
  Masses masses;
  const float factor = common_factor(scale);
  for (int c = 0; c < kFanout; ++c) masses.each[c] = common_mass(leaves[c], factor);
  return masses;
}
inline uint64_t sum(const Masses& masses) {
  uint64_t sum = 0;
  for (int c = 0; c < kFanout; ++c) sum += masses.each[c];
  return sum;
}

// The last entry that is not above r: four steps of binary search, free of branches.
inline uint64_t pick_child(const uint64_t* node, uint64_t& r) {
  uint64_t child = node[8] <= r ? 8 : 0;
  child += node[child + 4] <= r ? 4 : 0;
  child += node[child + 2] <= r ? 2 : 0;
  child += node[child + 1] <= r ? 1 : 0;
  r -= node[child];
  return child;
}

// The same among sixteen masses, which are added up first.
inline uint64_t pick_leaf(const Masses& masses, uint64_t r) {
  uint64_t node[kFanout], before = 0;
  for (int c = 0; c < kFanout; ++c) {
    node[c] = before;
    before += masses.each[c];
  }
  return pick_child(node, r);
}

// Vectors of the compiler's own type, because it fails to make one of a written-out loop over a node.
using Sums [[gnu::vector_size(16), gnu::aligned(16), gnu::may_alias]] = uint64_t;
inline void add_after(uint64_t* node, uint64_t child, uint64_t delta) {
  auto* sums = reinterpret_cast<Sums*>(node);
  const auto* after = reinterpret_cast<const Sums*>(kAfter[child].data());
  for (int v = 0; v < kFanout / 2; ++v) sums[v] += after[v] & delta;
}

constexpr size_t kBlocks = 16;
inline void words_of_blocks(const Stream& stream, uint64_t number, uint64_t* out) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (uint32_t l = 0; l < kBlocks; ++l) {
    c0[l] = uint32_t(number + l);
    c1[l] = uint32_t((number + l) >> 32);
    c2[l] = stream.epoch;
    c3[l] = uint32_t(stream.purpose) << 24;
  }
  uint32_t k0 = uint32_t(stream.seed), k1 = uint32_t(stream.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85)
    for (uint32_t l = 0; l < kBlocks; ++l) {
      // High and low halves apart: that is how compilers recognise a vector multiplication.
      const uint32_t a_high = uint32_t(uint64_t{0xD2511F53} * c0[l] >> 32), a_low = 0xD2511F53u * c0[l];
      const uint32_t b_high = uint32_t(uint64_t{0xCD9E8D57} * c2[l] >> 32), b_low = 0xCD9E8D57u * c2[l];
      c0[l] = b_high ^ c1[l] ^ k0;
      c1[l] = b_low;
      c2[l] = a_high ^ c3[l] ^ k1;
      c3[l] = a_low;
    }
  for (uint32_t l = 0; l < kBlocks; ++l) {
    out[2 * l] = c0[l] | uint64_t{c1[l]} << 32;
    out[2 * l + 1] = c2[l] | uint64_t{c3[l]} << 32;
  }
}
