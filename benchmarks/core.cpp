// benchmarks/core.cpp: the tree without Python. From the repository:
//
//   g++ -std=c++20 -O3 -fno-strict-aliasing -ffp-contract=off -Icsrc benchmarks/core.cpp
//   csrc/sum_tree.cpp csrc/schemes.cpp csrc/kernels.cpp csrc/threads.cpp
//   ./a.out [--isa baseline|avx2|avx512] [sizes, by default 1e6 1e7 1e8; 1e9 takes 10 GB for a moment]
//
// ns an index, one thread, batches of 256: a bare random read, stratified draws, find, update. Fresh places in each
// call; priorities are exp(u), u uniform in [-3, 3]. Medians of turns so short that a busy machine spoils few.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "sum_tree.h"
#include "timing.h"

using namespace fastprio;

constexpr int kTurns = 101, kCalls = 40, kBatch = 256, kAll = kCalls * kBatch;

int main(int argc, char** argv) {
  std::vector<double> sizes;
  for (int a = 1; a < argc; ++a)
    if (std::strcmp(argv[a], "--isa") == 0 && a + 1 < argc) {
      const std::string name = argv[++a];
      const Isa isa = name == "avx512" ? Isa::kAvx512 : name == "avx2" ? Isa::kAvx2 : Isa::kBaseline;
      if (!isa_available(isa)) return std::puts("this processor lacks that instruction set"), 1;
      use_isa(isa);
    } else {
      sizes.push_back(std::stod(argv[a]));
    }
  if (sizes.empty()) sizes = {1e6, 1e7, 1e8};
  std::puts("| N | read | draw | find | update |\n|---|---|---|---|---|");
  for (const double wish : sizes) {
    const uint64_t size = uint64_t(wish);
    Random random{1};
    SumTree tree(size);
    {
      Lines<float> priorities(size);
      for (uint64_t i = 0; i < size; ++i) priorities[i] = std::exp(6 * random.uniform() - 3);
      if (!tree.fill(priorities.data()).ok()) return 1;
    }
    std::vector<double> times[4];
    std::vector<int64_t> at(kAll), out(kBatch);
    std::vector<uint64_t> r(kAll);
    std::vector<float> fresh(kAll);
    std::vector<double> probabilities(kBatch);
    bool good = true;
    for (uint64_t turn = 0, draw = 0; turn < kTurns; ++turn) {
      for (auto& i : at) i = int64_t(random.below(size));
      float sum = 0;
      times[0].push_back(nanoseconds([&] {
        for (const int64_t i : at) sum += tree.priorities()[i];
      }));
      good &= sum > 0;
      times[1].push_back(nanoseconds([&] {
        for (int c = 0; c < kCalls; ++c, draw += kBatch)
          good &= tree.sample({1, 0, draw, kBatch, Scheme::kStratified, kBatch}, out.data(), probabilities.data()).ok();
      }));
      for (auto& x : r) x = random.below(tree.total());
      times[2].push_back(nanoseconds([&] {
        for (int j = 0; j < kAll; j += kBatch) good &= tree.find(&r[j], kBatch, out.data()).ok();
      }));
      for (auto& i : at) i = int64_t(random.below(size));
      for (auto& p : fresh) p = std::exp(6 * random.uniform() - 3);
      times[3].push_back(nanoseconds([&] {
        for (int j = 0; j < kAll; j += kBatch) good &= tree.update(&at[j], &fresh[j], kBatch).ok();
      }));
    }
    if (!good) return 1;
    std::printf("| %.0e |", wish);
    for (const auto& all : times) std::printf(" %.1f |", median(all) / kAll);
    std::puts("");
  }
}
