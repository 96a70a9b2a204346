// benchmarks/timing.h: what the C++ benchmarks share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

struct Random {  // splitmix64, for places and priorities that have nothing to do with the generator under test
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = (state += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return uint64_t((unsigned __int128)(*this)() * n >> 64); }
  float uniform() { return float((*this)() >> 40) * 0x1p-24f; }  // in [0, 1)
};

// Nanoseconds that `work` takes.
template <class F>
double nanoseconds(F&& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - begin;
  return elapsed.count();
}

inline double median(std::vector<double> all) {
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}
