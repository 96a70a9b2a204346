// benchmarks/workload.cpp: a fixed piece of work whose instructions benchmarks/instructions.sh counts.
//
// workload ISA: a tree of a million examples, 102,400 stratified draws in batches of 256, then as many updates; all
// inputs come from Philox, so that each run executes the same instructions. The script counts inside `draws` and
// `updates` alone, by their names. Exits with 2 where the processor lacks the instruction set.
#include <cstdio>
#include <cstring>
#include <vector>

#include "sum_tree.h"

using namespace fastprio;

constexpr uint64_t kSize = 1'000'000, kBatch = 256, kBatches = 400;

extern "C" [[gnu::noinline]] uint64_t draws(SumTree& tree) {
  uint64_t sum = 0;
  int64_t indices[kBatch];
  double probabilities[kBatch];
  for (uint64_t k = 0; k < kBatches; ++k) {
    tree.sample({1, 0, k * kBatch, kBatch, Scheme::kStratified, kBatch}, indices, probabilities);
    sum += uint64_t(indices[k % kBatch]);
  }
  return sum;
}

extern "C" [[gnu::noinline]] uint64_t updates(SumTree& tree, const int64_t* at, const float* priorities) {
  for (uint64_t k = 0; k < kBatches; ++k) tree.update(at + k * kBatch, priorities + k * kBatch, kBatch);
  return tree.total();
}

int main(int argc, char** argv) {
  const Isa isa = argc > 1 && std::strcmp(argv[1], "avx2") == 0 ? Isa::kAvx2 : Isa::kBaseline;
  if (!isa_available(isa)) return 2;
  use_isa(isa);
  const Stream stream{7, 0, Purpose::kPolicy};
  auto priority = [&](uint64_t n) { return float(word(stream, n, 1) >> 40) * 0x1p-24f; };
  std::vector<float> all(kSize), priorities(kBatch * kBatches);
  std::vector<int64_t> at(kBatch * kBatches);
  for (uint64_t i = 0; i < kSize; ++i) all[i] = priority(i);
  for (uint64_t j = 0; j < at.size(); ++j) {
    at[j] = int64_t(word(stream, j, 2) % kSize);
    priorities[j] = priority(kSize + j);
  }
  SumTree tree(kSize);
  tree.fill(all.data());
  const uint64_t sum = draws(tree), total = updates(tree, at.data(), priorities.data());
  std::printf("%llu %llu\n", static_cast<unsigned long long>(sum), static_cast<unsigned long long>(total));
}
