// tests/cpp/check.h: what the tests share. A failed check prints where and exits; done() prints the closing line.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "random.h"

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
