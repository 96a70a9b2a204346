// tests/cpp/stress.cpp: every member in random order, failing calls included, for the sanitizers to watch. After
// each call that fails the tree is as it was; every so often it is audited.
#include <sys/resource.h>

#include <cstdlib>
#include <new>

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

// Some pieces of an epoch without repeats, and pieces that are not the next, until a piece is more than there is.
static void an_epoch(SumTree& tree, Random& random) {
  const uint64_t n = tree.size(), seed = random.below(3);
  const uint32_t epoch = uint32_t(random.below(2));
  std::vector<uint8_t> drawn(n);
  uint64_t offset = 0;
  for (uint64_t pieces = random.below(7); pieces > 0; --pieces) {
    const uint64_t count = random.below(n / 3 + 2);
    std::vector<int64_t> at(count);
    std::vector<double> probabilities(count);
    auto draw = [&](uint64_t s, uint32_t e, uint64_t from) {
      return tree.sample({s, e, from, count, Scheme::kEpoch, 1}, at.data(), probabilities.data());
    };
    const std::vector<uint8_t> before = state(tree);
    if (offset > 0 && count > 0) {
      CHECK(draw(seed + 1, epoch, offset).kind == Status::kNotNext);
      CHECK(draw(seed, epoch + 1, offset).kind == Status::kNotNext);
      CHECK(draw(seed, epoch, offset + 1).kind == Status::kNotNext);
      CHECK(state(tree) == before);
    }
    const Status status = draw(seed, epoch, offset);
    if (!status.ok()) {
      CHECK(state(tree) == before);
      return;
    }
    for (uint64_t j = 0; j < count; ++j) {
      CHECK(tree.priorities()[at[j]] > 0 && drawn[at[j]]++ == 0);
      CHECK(probabilities[j] > 0 && probabilities[j] <= 1);
    }
    offset += count;
  }
}

// What a random walk meets rarely: sizes in bytes, a fixed scale, views of the tree's own leaves, nothing to do, and
// no memory.
static void corners() {
  SumTree tree(40);
  CHECK(tree.bytes() >= 40 * 4 + 3 * 8);
  int64_t at[] = {3, 5};
  float two[] = {1.0f, 2.0f};
  double probabilities[2];
  CHECK(tree.sample({1, 0, 5, 1, Scheme::kEpoch, 1}, at, probabilities).kind == Status::kNotNext);  // none has begun
  CHECK(tree.sample({1, 0, 0, 1, Scheme::kIid, 1}, at, probabilities).kind == Status::kEmpty);
  CHECK(tree.sample({1, 0, 0, 0, Scheme::kIid, 1}, at, probabilities).ok());
  CHECK(tree.update(at, two, 2).ok());
  int64_t other[] = {5, 3};
  CHECK(tree.update(other, tree.priorities() + 3, 1).ok());  // reads leaf 3, writes leaf 5
  CHECK(tree.priorities()[5] == 1.0f && tree.priorities()[3] == 1.0f);
  audit(tree);

  SumTree fixed(8, 0);
  const float all[] = {0, 1, 2, 3, 0, 1, 2, 3};
  CHECK(fixed.fill(all).ok() && fixed.total() == 12);
  at[0] = 0, two[0] = 1000;
  CHECK(fixed.update(at, two, 1).ok() && fixed.total() == 1012 && fixed.scale() == 0);
  CHECK(fixed.refit_gain(1) == 0);
  fixed.refit();
  CHECK(fixed.total() == 1012 && fixed.max_bits() == std::bit_cast<uint32_t>(1000.0f));
  audit(fixed);

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which need more address space than this leaves
  rlimit before;
  getrlimit(RLIMIT_AS, &before);
  const rlimit little{rlim_t{1} << 30, before.rlim_max};
  setrlimit(RLIMIT_AS, &little);
  bool refused = false;
  try {
    SumTree large(kMaxSize);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  setrlimit(RLIMIT_AS, &before);
  CHECK(refused);
#endif
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
      case 8:
        an_epoch(tree, random);
        continue;
      default: {
        const auto scheme = Scheme(random.below(4));
        const uint64_t group = 1 + random.below(40);
        uint64_t offset = random.below(2) ? random() >> 2 : 0;
        if (scheme == Scheme::kUnique && random.below(4)) offset -= offset % group;
        std::vector<double> probabilities(count);
        status = tree.sample({random(), 0, offset, count, scheme, group}, at.data(), probabilities.data());
        if (!status.ok()) break;
        for (size_t j = 0; j < count; ++j) {
          CHECK(uint64_t(at[j]) < n && tree.priorities()[at[j]] > 0);
          CHECK(probabilities[j] > 0 && probabilities[j] <= 1);
        }
        CHECK(state(tree) == before);
      }
    }
    if (!status.ok()) CHECK(state(tree) == before);
    if (step % 16 == 0) audit(tree);
  }
  audit(tree);
}

int main() {
  setenv("FASTPRIO_NUM_THREADS", "", 1);  // as if it were not there
  corners();
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
