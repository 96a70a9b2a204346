// csrc/threads.cpp: how many threads a call may use.
#include "threads.h"

#include <sched.h>

#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastprio {
namespace {

constexpr const char* kVariable = "FASTPRIO_NUM_THREADS";

std::atomic<int> asked_for{0};

int from_environment() {
  const char* text = std::getenv(kVariable);
  if (!text || !*text) return 0;
  char* end = nullptr;
  errno = 0;
  const long n = std::strtol(text, &end, 10);
  if (*end || errno || n < 1 || n > kMostThreads)
    throw std::invalid_argument(std::string(kVariable) + " = '" + text + "': expected an integer in [1, " +
                                std::to_string(kMostThreads) + "]");
  return int(n);
}

int cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));  // also on machines of more cores than a cpu_set_t has
}

}  // namespace

int num_threads() {
  if (const int n = asked_for) return n;
  static const int variable = from_environment();  // read once, and again if it was malformed
  return variable ? variable : cores();
}

void set_num_threads(int n) { asked_for = n; }

}  // namespace fastprio
