// benchmarks/timing.h: what the C++ benchmarks share.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "../tests/cpp/random.h"

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
