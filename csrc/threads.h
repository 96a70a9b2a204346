// csrc/threads.h: work on a range, spread over threads that live no longer than the call.
//
// Promise. parallel_for(count, least, unit, work) calls work(begin, end) for ranges that cover [0, count) once and are
// cut at multiples of `unit`. It returns, or throws what a call of work threw first, when all threads have ended: none
// exists before or after, so importing starts none and a fork is safe. With fewer than two times `least` items, one
// thread allowed, or none to be had from the system, everything runs on the caller's thread. Which thread does which
// range is left to chance: work must give the same bits for any split.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace fastprio {

// How many threads a call may use: what was set, else FASTPRIO_NUM_THREADS, else the cores this process may run on.
// Throws std::invalid_argument if that variable is malformed; after one call that did not, never.
constexpr int kMostThreads = 1024;
int num_threads();
void set_num_threads(int n);  // in [1, kMostThreads]

// How many leaves of a scan, and lookups, make a thread worth starting: with twice as many, two threads are about a
// fifth faster than one (csrc/README.md). Tests set another number for both; 0 goes back.
constexpr uint64_t kLeastScanned = uint64_t{1} << 19, kLeastLookedUp = uint64_t{1} << 14;
inline std::atomic<uint64_t> least_for_tests{0};

inline uint64_t threads_for(uint64_t count, uint64_t least) {
  if (const uint64_t other = least_for_tests) least = other;
  return count / 2 < least ? 1 : std::min<uint64_t>(uint64_t(num_threads()), count / least);
}

template <class Work>
void parallel_for(uint64_t count, uint64_t least, uint64_t unit, const Work& work) {
  const uint64_t threads = threads_for(count, least);
  if (threads <= 1) return count ? work(uint64_t{0}, count) : void();
  // Several ranges a thread, so that one on a busy core holds up nothing.
  const uint64_t units = (count + unit - 1) / unit, range = (units + 4 * threads - 1) / (4 * threads) * unit;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr thrown;
  auto run = [&] {
    try {
      for (uint64_t begin; !failed && (begin = next.fetch_add(range)) < count;)
        work(begin, std::min(begin + range, count));
    } catch (...) {
      if (!failed.exchange(true)) thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  try {
    others.reserve(threads - 1);
    while (others.size() < threads - 1) others.emplace_back(run);
  } catch (const std::exception&) {  // no more threads, or no memory for them: those there are do all the ranges
  }
  run();
  for (std::thread& thread : others) thread.join();
  if (failed) std::rethrow_exception(thrown);
}

// Keeps the best of what several threads find, such as the least position or the largest number.
template <class T, class Better>
void keep(std::atomic<T>& kept, T found, const Better& better) {
  T before = kept;
  while (better(found, before) && !kept.compare_exchange_weak(before, found)) {
  }
}

}  // namespace fastprio
