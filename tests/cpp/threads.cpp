// tests/cpp/threads.cpp: the same bits for every number of threads, and what is reported when a call fails; for the
// thread sanitizer to watch. parallel_for itself: each item once, exceptions, threads that cannot be started.
#include "threads.h"

#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "audit.h"
#include "permutation.h"

using namespace fastprio;

// Appends a hash (FNV-1a) of some numbers.
template <class T>
static void add(std::vector<uint64_t>& hashes, const T* data, size_t count) {
  uint64_t hash = 0xCBF29CE484222325;
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  for (size_t j = 0; j < count * sizeof(T); ++j) hash = (hash ^ bytes[j]) * 0x100000001B3;
  hashes.push_back(hash);
}

// Everything that uses threads, one after another: hashes of all results, statuses and trees.
static std::vector<uint64_t> everything(uint64_t n, uint64_t seed) {
  std::vector<uint64_t> hashes;
  Random random{seed};
  SumTree tree(n);
  auto note = [&](const Status& status) {
    const uint64_t numbers[] = {uint64_t(status.kind), status.position, tree.total(), tree.max_bits()};
    add(hashes, numbers, std::size(numbers));
    add(hashes, tree.priorities(), n);
    for (int k = 0; k < tree.levels(); ++k) add(hashes, tree.level(k), tree.level_size(k));
  };
  std::vector<float> all(n);
  for (float& p : all) p = std::bit_cast<float>(uint32_t(0x30000000 + random.below(0x10000000)));
  for (uint64_t i = 0; i < n; i += 1 + random.below(4)) all[i] = random.below(2) ? 0.0f : -0.0f;
  all[n / 2] = 1.5f;
  note(tree.fill(all.data()));
  if (n < 10000) audit(tree);
  std::vector<float> wrong = all;
  for (int k = 0; k < 3; ++k) wrong[random.below(n)] = k == 1 ? -1.0f : __builtin_nanf("");
  note(tree.fill(wrong.data()));
  const int64_t at = int64_t(random.below(n));
  const float large = 1e9f, small = 1.0f;
  note(tree.update(&at, &large, 1));  // another scale
  note(tree.update(&at, &small, 1));
  const int gain = tree.refit_gain(1);
  add(hashes, &gain, 1);
  tree.refit();
  note({});

  std::vector<uint64_t> masses(2 * n + 1);
  for (uint64_t& mass : masses) mass = random.below(tree.total());
  std::vector<int64_t> found(masses.size());
  note(tree.find(masses.data(), masses.size(), found.data()));
  add(hashes, found.data(), found.size());
  masses[random.below(masses.size())] = tree.total();
  masses[random.below(masses.size())] = tree.total();
  note(tree.find(masses.data(), masses.size(), found.data()));

  for (const Scheme scheme : {Scheme::kIid, Scheme::kStratified, Scheme::kSystematic, Scheme::kUnique})
    for (const uint64_t group : {uint64_t{1}, uint64_t{7}, n / 3 + 1, 3 * n}) {
      if (scheme == Scheme::kUnique && group > 2000) continue;  // its cost is the square of that
      uint64_t offset = random() >> 3;
      if (scheme == Scheme::kUnique) offset -= offset % group;
      std::vector<int64_t> indices(n + 5);
      std::vector<double> probabilities(n + 5);
      const Status status = tree.sample({seed, 1, offset, n + 5, scheme, group}, indices.data(), probabilities.data());
      note(status);
      if (!status.ok()) continue;
      add(hashes, indices.data(), indices.size());
      add(hashes, probabilities.data(), probabilities.size());
    }

  int64_t parked[40];
  double probabilities[40];
  note(tree.sample({seed, 1, 0, 40, Scheme::kEpoch, 1}, parked, probabilities));
  for (int k = 0; k < 40; ++k) CHECK(tree.priorities()[parked[k]] > 0);
  note(tree.update(&at, &large, 1));  // a rebuild that leaves out what is parked
  if (n < 10000) audit(tree);
  note(tree.fill(2.5f));
  SumTree written(n);
  const uint64_t cut = random.below(n);
  note(written.write(0, all.data(), cut));
  note(written.write(cut, all.data() + cut, n - cut));
  note(written.write(0, wrong.data(), n));
  tree.adopt(written);
  note({});

  const Permutation permutation(n, {seed, 3, Purpose::kCover});
  for (const uint64_t one_in : {0, 2, 20}) {
    std::vector<uint8_t> skip((n + 7) / 8);
    for (uint64_t i = 0; one_in && i < n; ++i)
      if (random.below(one_in)) skip[i >> 3] |= uint8_t(1 << (i & 7));
    std::vector<int64_t> out(n);
    uint64_t position = 0;
    for (const uint64_t count : {n / 2, uint64_t{0}, n / 3, n, n}) {
      const uint8_t* bits = one_in ? skip.data() : nullptr;
      const auto [taken, next] = walk_permutation(permutation, position, bits, out.data(), count);
      const uint64_t numbers[] = {taken, next};
      add(hashes, numbers, 2);
      add(hashes, out.data(), taken);
      position = next;
    }
    CHECK(position == n);
    CHECK(walk_permutation(permutation, n + 1, nullptr, out.data(), n).first == 0);
  }
  return hashes;
}

static void same_for_every_number() {
  least_for_tests = 64;
  for (const uint64_t n : {100, 256, 600, 5000, 70000}) {
    set_num_threads(1);
    const auto expected = everything(n, n);
    for (const int threads : {2, 3, 8}) {
      set_num_threads(threads);
      CHECK(everything(n, n) == expected);
    }
  }
  least_for_tests = 0;
  set_num_threads(1);
  const auto expected = everything(1100000, 1);  // mapped, and enough for threads without a test's threshold
  set_num_threads(8);
  CHECK(everything(1100000, 1) == expected);
}

static void each_item_once() {
  set_num_threads(8);
  for (const uint64_t count : {0, 1, 2, 63, 64, 65, 1000, 12345})
    for (const uint64_t unit : {1, 7, 64, 1000, 20000}) {
      least_for_tests = 1;
      std::vector<std::atomic<int>> times(count);
      std::atomic<bool> good{true};
      parallel_for(count, 1, unit, [&](uint64_t begin, uint64_t end) {
        if (begin >= end || end > count || begin % unit != 0 || (end % unit != 0 && end != count)) good = false;
        for (uint64_t j = begin; j < end; ++j) ++times[j];
      });
      CHECK(good);
      for (const auto& t : times) CHECK(t == 1);
    }
}

static void an_exception_comes_to_the_caller() {
  set_num_threads(8);
  least_for_tests = 1;
  for (int k = 0; k < 20; ++k) {
    bool caught = false;
    try {
      parallel_for(1000, 1, 1, [](uint64_t begin, uint64_t) {
        if (begin > 300) throw std::runtime_error("from a thread");
      });
    } catch (const std::runtime_error& error) {
      caught = std::strcmp(error.what(), "from a thread") == 0;
    }
    CHECK(caught);
  }
}

static void without_threads_the_caller_does_it_all() {
  set_num_threads(1);
  least_for_tests = 64;
  const auto expected = everything(5000, 9);
  set_num_threads(8);
  rlimit before;
  getrlimit(RLIMIT_NPROC, &before);
  const rlimit none{0, before.rlim_max};
  setrlimit(RLIMIT_NPROC, &none);  // of no effect on the superuser: then this only repeats the comparison
  const auto got = everything(5000, 9);
  setrlimit(RLIMIT_NPROC, &before);
  CHECK(got == expected);
}

int main() {
  for (const char* wrong : {"0", "-1", "x", "2x", "99999", "99999999999999999999"}) {
    bool refused = false;
    setenv("FASTPRIO_NUM_THREADS", wrong, 1);
    try {
      SumTree tree(5);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
  setenv("FASTPRIO_NUM_THREADS", "3", 1);
  CHECK(num_threads() == 3);
  setenv("FASTPRIO_NUM_THREADS", "4", 1);
  CHECK(num_threads() == 3);  // it is read once
  each_item_once();
  an_exception_comes_to_the_caller();
  same_for_every_number();
  without_threads_the_caller_does_it_all();
  return done("threads");
}
