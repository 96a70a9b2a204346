// tests/cpp/stress.cpp: every member in random order, failing calls included, for the sanitizers to watch. After
// each call that fails the tree is as it was; every so often it is audited.
#include "audit.h"
#include "permutation.h"

using namespace fastprio;

static std::vector<uint8_t> state(const SumTree& tree) {
  std::vector<uint8_t> bytes;
  auto add = [&](const void* data, size_t size) {
    const auto* p = static_cast<const uint8_t*>(data);
    bytes.insert(bytes.end(), p, p + size);
  };
  add(tree.priorities(), tree.size() * sizeof(float));
  for (int k = 0; k < tree.levels(); ++k) add(tree.level(k), tree.level_size(k) * sizeof(uint64_t));
  const uint64_t numbers[] = {tree.total(),       uint64_t(tree.scale()), tree.max_bits(),    tree.parked().active,
                              tree.parked().seed, tree.parked().next,     tree.parked().epoch};
  add(numbers, sizeof numbers);
  add(tree.parked_bits().data(), tree.parked_bits().size());
  return bytes;
}

static float priority(Random& random) {
  const uint64_t kind = random.below(8);
  if (kind == 0) return 0.0f;
  if (kind == 1) return -0.0f;
  return std::bit_cast<float>(uint32_t(kind == 2 ? random.below(kInfinityBits) : 0x3F000000 + random.below(0x2000000)));
}

static void stress(uint64_t n, uint64_t seed, int steps) {
  Random random{seed};
  SumTree tree(n);
  const float bad[] = {-1.0f, 1.0f / 0.0f, __builtin_nanf("")};
  for (int step = 0; step < steps; ++step) {
    const std::vector<uint8_t> before = state(tree);
    const size_t count = random.below(600);
    std::vector<int64_t> at(count);
    std::vector<float> priorities(count);
    for (size_t j = 0; j < count; ++j) {
      at[j] = int64_t(random.below(n));
      priorities[j] = priority(random);
    }
    Status status;
    switch (random.below(10)) {
      case 0:
      case 1:
        if (count && random.below(3) == 0) {
          const size_t j = random.below(count);
          if (random.below(2))
            at[j] = random.below(2) ? -1 : int64_t(n);
          else
            priorities[j] = bad[random.below(3)];
          status = tree.update(at.data(), priorities.data(), count);
          CHECK(!status.ok() && status.position == j);
          break;
        }
        status = tree.update(at.data(), priorities.data(), count);
        CHECK(status.ok());
        break;
      case 2: {
        std::vector<float> all(n);
        for (float& p : all) p = priority(random);
        if (random.below(2)) all[random.below(n)] = bad[random.below(3)];
        status = tree.fill(all.data());
        break;
      }
      case 3:
        status = tree.fill(random.below(3) ? priority(random) : bad[random.below(3)]);
        break;
      case 4: {
        SumTree written(n);
        const uint64_t cut = random.below(n + 1);
        std::vector<float> all(n);
        for (float& p : all) p = priority(random);
        CHECK(written.write(0, all.data(), cut).ok());
        CHECK(written.write(cut, all.data() + cut, n - cut).ok());
        tree.adopt(written);
        for (uint64_t i = 0; i < n; ++i) CHECK(std::bit_cast<uint32_t>(tree.priorities()[i]) == priority_bits(all[i]));
        break;
      }
      case 5: {
        const int gain = tree.refit_gain(1), scale = tree.scale();
        tree.refit();
        CHECK(tree.max_bits() == 0 || gain == tree.scale() - scale);
        break;
      }
      case 6: {
        status = tree.gather(at.data(), count, priorities.data());
        CHECK(status.ok());
        if (count == 0) break;
        at[count - 1] = int64_t(n);
        status = tree.gather(at.data(), count, priorities.data());
        CHECK(!status.ok() && status.position == count - 1);
        break;
      }
      case 7: {  // what a saved state does when it is loaded
        const auto parked = tree.parked();
        const auto bits = tree.parked_bits();
        tree.set_max(tree.max_bits());
        tree.set_parked(parked, bits);
        CHECK(state(tree) == before);
        break;
      }
      default: {
        const auto scheme = Scheme(random.below(5));
        const uint64_t group = 1 + random.below(40);
        uint64_t offset = random.below(2) ? random() >> 2 : 0;
        if (scheme == Scheme::kUnique && random.below(4)) offset -= offset % group;
        if (scheme == Scheme::kEpoch && random.below(2)) offset = tree.parked().next;
        const uint64_t key = scheme == Scheme::kEpoch ? tree.parked().seed : random();
        std::vector<double> probabilities(count);
        status = tree.sample({key, tree.parked().epoch, offset, count, scheme, group}, at.data(), probabilities.data());
        if (!status.ok()) break;
        for (size_t j = 0; j < count; ++j) {
          CHECK(uint64_t(at[j]) < n && tree.priorities()[at[j]] > 0);
          CHECK(probabilities[j] > 0 && probabilities[j] <= 1);
        }
        if (scheme != Scheme::kEpoch) CHECK(state(tree) == before);
      }
    }
    if (!status.ok()) CHECK(state(tree) == before);
    if (step % 16 == 0) audit(tree);
  }
}

int main() {
  for (const uint64_t n : {1, 3, 16, 17, 100, 257, 3000}) stress(n, n, n < 1000 ? 600 : 200);
  stress(600000, 5, 12);  // large enough to be mapped, not allocated
  for (const uint64_t n : {1, 2, 3, 37, 256, 1000}) {
    std::vector<uint8_t> seen((n + 7) / 8), skip((n + 7) / 8);
    std::vector<int64_t> out(n + 1);
    const Permutation permutation(n, {n, 1, Purpose::kCover});
    auto [taken, position] = walk_permutation(permutation, 0, nullptr, out.data(), n + 1);
    CHECK(taken == n && position == n);
    for (uint64_t j = 0; j < n; ++j) seen[out[j] >> 3] |= uint8_t(1 << (out[j] & 7));
    for (uint64_t i = 0; i < n; ++i) CHECK(seen[i >> 3] >> (i & 7) & 1);
    CHECK(walk_permutation(permutation, 0, seen.data(), out.data(), n).first == 0);
  }
  return done("stress");
}
