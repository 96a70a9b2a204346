// tests/cpp/audit.h: proves P(i) = mass(i) / total for a tree. Every node is the sum of its children, so a search
// is monotone, and the first and last integer of each leaf's range stand for all.
#pragma once

#include <bit>
#include <vector>

#include "check.h"
#include "sum_tree.h"

inline bool is_parked(const fastprio::SumTree& tree, uint64_t i) {
  return tree.parked().active && (tree.parked_bits()[i >> 3] >> (i & 7) & 1);
}

inline void audit(const fastprio::SumTree& tree) {
  std::vector<uint64_t> below(tree.size());
  for (uint64_t i = 0; i < tree.size(); ++i)
    below[i] = is_parked(tree, i) ? 0 : fastprio::mass(std::bit_cast<uint32_t>(tree.priorities()[i]), tree.scale());
  uint64_t prefix = 0;
  for (uint64_t i = 0; i < tree.size(); prefix += below[i++]) {
    if (below[i] == 0) continue;
    const uint64_t ends[2] = {prefix, prefix + below[i] - 1};
    int64_t found[2];
    CHECK(tree.find(ends, 2, found).ok());
    CHECK(found[0] == int64_t(i) && found[1] == int64_t(i));
  }
  CHECK(prefix == tree.total());
  int64_t none;
  CHECK(!tree.find(&prefix, 1, &none).ok());
  for (int k = 0; k < tree.levels(); ++k) {
    std::vector<uint64_t> sums(tree.level_size(k));
    for (uint64_t i = 0; i < below.size(); ++i)
      if (i / 16 < sums.size())
        sums[i / 16] += below[i];
      else
        CHECK(below[i] == 0);
    uint64_t before = 0;
    for (uint64_t b = 0; b < sums.size(); before += sums[b++]) {
      if (b % 16 == 0) before = 0;
      CHECK(before == tree.level(k)[b]);
    }
    below = sums;
  }
  CHECK(below.size() == 16);
}
