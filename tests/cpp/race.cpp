// tests/cpp/race.cpp: eight threads on one tree, for the thread sanitizer to watch. What only reads may run at once;
// what changes the tree runs alone. Ten million rows are drawn, looked up, gathered and updated; then it is audited.
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <thread>

#include "audit.h"
#include "threads.h"

using namespace fastprio;

constexpr int kThreads = 8;
constexpr uint64_t kRows = 10'000'000, kSize = 5000, kMost = 2000;

static std::shared_mutex lock;
static std::atomic<uint64_t> rows{0}, reads{0}, writes{0}, drawn{0};

static void check(bool condition) {  // CHECK counts, which only one thread may
  if (condition) return;
  std::printf("race.cpp: a thread has found something wrong\n");
  std::_Exit(1);
}

static void read(SumTree& tree, Random& random, uint64_t count) {
  std::vector<int64_t> indices(count);
  std::vector<float> priorities(count);
  std::vector<double> probabilities(count);
  const std::shared_lock<std::shared_mutex> shared(lock);
  ++reads;
  if (tree.total() == 0) return;
  const Scheme scheme = random.below(2) ? Scheme::kIid : Scheme::kStratified;
  const Status status = tree.sample({random(), 0, 0, count, scheme, 64}, indices.data(), probabilities.data());
  check(status.ok() && tree.gather(indices.data(), count, priorities.data()).ok());
  for (uint64_t j = 0; j < count; ++j) check(priorities[j] > 0);
  drawn += count;
  std::vector<uint64_t> masses(count);
  for (uint64_t& mass : masses) mass = random.below(tree.total());
  check(tree.find(masses.data(), count, indices.data()).ok());
}

static void write(SumTree& tree, Random& random, uint64_t count) {
  std::vector<int64_t> indices(count);
  std::vector<float> priorities(count);
  std::vector<double> probabilities(count);
  for (uint64_t j = 0; j < count; ++j) {
    indices[j] = int64_t(random.below(kSize));
    priorities[j] = random.below(8) ? random.uniform() * float(1u << random.below(20)) : 0.0f;
  }
  const std::unique_lock<std::shared_mutex> alone(lock);
  ++writes;
  if (random.below(50) == 0) tree.refit();
  if (random.below(20) == 0)
    tree.sample({random.below(3), 0, 0, 10, Scheme::kEpoch, 1}, indices.data(), probabilities.data());
  else
    check(tree.update(indices.data(), priorities.data(), count).ok());
}

int main() {
  set_num_threads(2);
  least_for_tests = 1500;  // so that now and then a call starts threads of its own
  SumTree tree(kSize);
  CHECK(tree.fill(1.0f).ok());
  std::vector<std::thread> threads;
  for (int k = 0; k < kThreads; ++k)
    threads.emplace_back([k, &tree] {
      Random random{uint64_t(k)};
      while (rows < kRows) {
        const uint64_t count = 10 + random.below(random.below(8) ? 200 : kMost);
        if (random.below(3))
          read(tree, random, count);
        else
          write(tree, random, count);
        rows += count;
      }
    });
  for (std::thread& thread : threads) thread.join();
  audit(tree);
  CHECK(reads > 1000 && writes > 1000 && drawn > kRows / 10);
  return done("race");
}
