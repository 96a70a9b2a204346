// tests/cpp/random.h: a small generator for data of tests and benchmarks, unrelated to the one under test.
#pragma once

#include <cstdint>

struct Random {  // Vigna's splitmix64
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = (state += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return (*this)() % n; }
  float uniform() { return float((*this)() >> 40) * 0x1p-24f; }  // in [0, 1)
};
