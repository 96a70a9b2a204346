// tests/cpp/check.h: what the tests share. A failed check prints where and exits; done() prints the closing line.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

inline uint64_t checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    ++checks;                                                             \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (0)

inline int done(const char* name) {
  if (checks == 0) return 1;
  std::printf("ok %s %llu checks\n", name, static_cast<unsigned long long>(checks));
  return 0;
}

// A small generator for test data, unrelated to the one under test (Vigna's splitmix64).
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = (state += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return (*this)() % n; }
};
