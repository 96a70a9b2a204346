// tests/cpp/exact_audit.cpp: the exact audit after random updates, for every instruction set and many sizes.
#include <cstring>

#include "audit.h"

using namespace fastprio;

int main() {
  Random random{2};
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_available(isa)) continue;
    use_isa(isa);
    for (const uint64_t n : {1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70000}) {
      SumTree tree(n);
      std::vector<float> last(n);
      for (int round = 0; round < 6; ++round) {
        std::vector<int64_t> at(random.below(3 * n + 2));
        std::vector<float> priorities(at.size());
        for (size_t j = 0; j < at.size(); ++j) {
          at[j] = int64_t(random.below(random.below(2) ? n : n / 8 + 1));
          // Zeros, numbers near one, or any exponent at all, so that the scale moves as well.
          const uint32_t any = uint32_t(random.below(round < 3 ? 0x40000000 : kInfinityBits));
          priorities[j] = random.below(4) == 0 ? 0.0f : std::bit_cast<float>(round % 3 ? any : any % 3 + 0x3F800000);
          last[at[j]] = priorities[j];
        }
        CHECK(tree.update(at.data(), priorities.data(), at.size()).ok());
        CHECK(std::memcmp(last.data(), tree.priorities(), n * sizeof(float)) == 0);
        audit(tree);
      }
      tree.refit();
      audit(tree);
      SumTree fresh(n);
      CHECK(fresh.fill(last.data()).ok());
      CHECK(fresh.total() == tree.total() && fresh.scale() == tree.scale());
      for (int k = 0; k < tree.levels(); ++k)
        CHECK(std::memcmp(tree.level(k), fresh.level(k), tree.level_size(k) * sizeof(uint64_t)) == 0);
    }
  }
  return done("exact_audit");
}
