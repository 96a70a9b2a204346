// tests/cpp/kernels.cpp: each hot loop, in every instruction set, against a few plain lines: all counts up to 70 and
// some beyond what goes down together, parked leaves, masses of every kind, sums up to 2^63, every rounding mode,
// subnormals flushed to zero.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cfenv>
#include <vector>

#include "check.h"
#include "mass.h"

using namespace fastprio;

// Two levels by hand: 16 nodes of 16 blocks of 16 leaves.
struct Tree {
  static constexpr int kLeaves = 4096;
  Lines<float> leaves{kLeaves};
  std::vector<Lines<uint64_t>> levels;
  std::vector<uint8_t> parked = std::vector<uint8_t>(kLeaves / 8);
  uint64_t total = 0;
  View view;

  Tree(Random& random, int kind) {
    const uint32_t max_bits = uint32_t(random.below(kInfinityBits - 0x0F800000) + 0x0F800000);  // M >= 2^-96
    const bool common = kind % 2 == 0;
    view = {leaves.data(), nullptr, 2, common ? scale_of(max_bits) : int(random.below(277)) - 97, common, nullptr};
    for (int i = 0; i < kLeaves; ++i) {
      const uint32_t near = uint32_t(max_bits - random.below(uint64_t{29} << 23));  // halves to be rounded among them
      const uint32_t low = uint32_t(random.below(0x1000000));
      const uint32_t choices[] = {0, near, near & 0xFFFFF000, low, uint32_t(random.below(max_bits)), max_bits};
      const uint32_t bits = choices[random.below(6)];
      leaves[i] = std::bit_cast<float>(bits > max_bits ? max_bits : bits);
    }
    if (kind % 4 >= 2) {
      for (auto& byte : parked) byte = uint8_t(random());
      view.parked = parked.data();
    }
    for (const int n : {256, 16}) levels.emplace_back(n);
    view.levels = levels.data();
  }

  uint64_t mass_of(int i) const {
    if (view.parked && (parked[i >> 3] >> (i & 7) & 1)) return 0;
    return mass(std::bit_cast<uint32_t>(leaves[i]), view.scale);
  }

  void add_up(uint64_t before_all) {  // the first leaf's prefix, so that sums may be as large as they can get
    uint64_t prefix = 0, node = 0;
    for (int i = 0; i < kLeaves; ++i) {
      if (i == 16 * 16) prefix += before_all, levels[1][1] = prefix;  // as if the first node were heavy
      if (i % 256 == 0) levels[1][i / 256] = node = prefix;
      if (i % 16 == 0) levels[0][i / 16] = prefix - node;
      prefix += mass_of(i);
    }
    total = prefix;
  }
};

static void descents(Tree& tree, Random& random, uint64_t before_all) {
  tree.add_up(before_all);
  std::vector<int64_t> leaf_of;  // by the definition: the leaves that have mass, with their prefixes
  std::vector<uint64_t> prefixes;
  uint64_t prefix = 0;
  for (int i = 0; i < Tree::kLeaves; ++i) {
    if (i == 256) prefix += before_all;
    if (!tree.mass_of(i)) continue;
    leaf_of.push_back(i);
    prefixes.push_back(prefix);
    prefix += tree.mass_of(i);
  }
  CHECK(prefix == tree.total && prefix < uint64_t{1} << 63);
  for (size_t count = 0; count < 300; count += count < 70 ? 1 : 57) {
    std::vector<uint64_t> r(count), rests(count);
    std::vector<int64_t> indices(count), in_place(count);
    std::vector<uint32_t> masses(count), again(count);
    std::vector<size_t> expected(count);
    for (size_t j = 0; j < count; ++j) {
      const size_t e = expected[j] = random.below(leaf_of.size());
      const uint64_t mass = tree.mass_of(int(leaf_of[e]));
      r[j] = prefixes[e] + (j % 3 == 0 ? 0 : j % 3 == 1 ? mass - 1 : random.below(mass));
      in_place[j] = int64_t(r[j]);
    }
    kernels().descend(tree.view, r.data(), count, indices.data(), masses.data(), rests.data());
    kernels().descend(tree.view, reinterpret_cast<uint64_t*>(in_place.data()), count, in_place.data(), again.data(),
                      nullptr);
    CHECK(indices == in_place && masses == again);
    for (size_t j = 0; j < count; ++j) {
      CHECK(indices[j] == leaf_of[expected[j]] && masses[j] == tree.mass_of(int(indices[j])));
      CHECK(rests[j] == r[j] - prefixes[expected[j]]);
    }
  }
}

static void sums(const Tree& tree) {
  std::vector<uint64_t> level(256), totals(16);
  for (const uint64_t blocks : {1, 15, 16, 17, 100, 256}) {
    kernels().sum_leaves(tree.view, blocks, level.data(), totals.data());
    uint64_t before = 0;
    for (uint64_t b = 0; b < (blocks + 15) / 16 * 16; ++b) {
      if (b % 16 == 0) before = 0;
      CHECK(level[b] == before);
      for (uint64_t c = 0; c < 16 && b < blocks; ++c) before += tree.mass_of(int(b * 16 + c));
      if (b % 16 == 15) CHECK(totals[b / 16] == before);
    }
  }
}

static void updates(Tree& tree, Random& random) {
  for (size_t count = 0; count < 300; count += count < 70 ? 1 : 57) {
    std::vector<uint32_t> before(count), after(count);
    std::vector<uint64_t> deltas(count), expected(256), in_place(256);
    std::vector<int64_t> at(count);
    for (size_t j = 0; j < count; ++j) {
      at[j] = int64_t(random.below(Tree::kLeaves));
      before[j] = std::bit_cast<uint32_t>(tree.leaves[at[j]]);
      after[j] = std::bit_cast<uint32_t>(tree.leaves[random.below(Tree::kLeaves)]);
    }
    kernels().deltas(tree.view, before.data(), after.data(), count, deltas.data());
    Lines<uint64_t> level(256);
    for (uint64_t& sum : expected) sum = random();
    std::copy(expected.begin(), expected.end(), level.data());
    for (size_t j = 0; j < count; ++j) {
      CHECK(deltas[j] == uint64_t{mass(after[j], tree.view.scale)} - mass(before[j], tree.view.scale));
      for (uint64_t i = at[j] / 16 + 1; i % 16 != 0; ++i) expected[i] += deltas[j];
    }
    kernels().add(level.data(), at.data(), 4, deltas.data(), count);
    CHECK(std::equal(expected.begin(), expected.end(), level.data()));
  }
}

static void largests(const Tree& tree, Random& random) {
  std::vector<uint32_t> priorities(70);
  for (uint32_t& bits : priorities) bits = std::bit_cast<uint32_t>(tree.leaves[random.below(Tree::kLeaves)]);
  for (const uint32_t strange :
       {0u, kNegativeZeroBits, 0xFF800000u, 0x80000001u, kInfinityBits, 0x7FC00000u, 0xFFC00000u})
    for (size_t count = 0; count <= priorities.size(); ++count) {
      auto given = priorities;
      if (count > 0) given[random.below(count)] = strange;
      uint32_t expected = 0;
      bool good = true;
      for (size_t j = 0; j < count; ++j) {
        const uint32_t bits = priority_bits(std::bit_cast<float>(given[j]));
        good &= bits < kInfinityBits;
        expected = bits > expected ? bits : expected;
      }
      const uint32_t found = kernels().largest(reinterpret_cast<const float*>(given.data()), count);
      CHECK(good ? found == expected : found >= kInfinityBits);
    }
}

int main() {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_available(isa)) continue;
    use_isa(isa);
    Random random{3};
    for (int kind = 0; kind < 48; ++kind) {
      constexpr int kModes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
      CHECK(std::fesetround(kModes[kind / 4 % 4]) == 0);
#if defined(__x86_64__)
      _mm_setcsr((_mm_getcsr() & ~0x8040u) | (kind % 3 == 0 ? 0x8040u : 0));  // subnormals count as zero, or not
#endif
      Tree tree(random, kind);
      sums(tree);
      updates(tree, random);
      largests(tree, random);
      descents(tree, random, 0);
      descents(tree, random, (uint64_t{1} << 63) - 1 - tree.total);
    }
  }
  return done("kernels");
}
