// csrc/permutation.h: keyed permutations of [0, n), n in [1, 2^32].
//
// shuffle()    writes a whole permutation: Fisher-Yates, uniform over all n! orders given ideal bits.
// Permutation  computes any single position in O(1) time and memory, so that a billion examples can be
//              visited once each in random order without a list of them. It is a Feistel network on the
//              next power of two (at least 2^8) with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
//              domains", CT-RSA 2002), then a rotation. The rotation makes every (position, value) pair
//              exactly equally likely over the keys; pairs of positions are only as good as eight
//              Feistel rounds make them. Not for cryptography.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "bounded.h"
#include "philox.h"
#include "threads.h"

namespace fastprio {

// order[0, n) becomes a permutation of [0, n). Step j uses word first_word + j of the stream; first[j] is
// that word, filled in by the caller (Kernels::words), and later attempts are computed in the rare case.
inline void shuffle(const Stream& stream, uint64_t first_word, const uint64_t* first, uint32_t n, uint32_t* order) {
  for (uint32_t j = 0; j < n; ++j) order[j] = j;
  for (uint64_t left = n; left > 1; --left) {
    const uint64_t j = left - 1, k = bounded<uint64_t>(left, first[j], Words(stream, first_word + j, 1));
    const uint32_t swapped = order[j];
    order[j] = order[k];
    order[k] = swapped;
  }
}

class Permutation {
 public:
  // The keys are words 0 to 4 of the stream.
  Permutation(uint64_t n, const Stream& stream) : n_(n) {
    const int bits = std::max(kLeastBits, int(std::bit_width(n - 1)));
    low_bits_ = bits / 2;
    low_mask_ = (uint32_t{1} << low_bits_) - 1;
    high_mask_ = (uint32_t{1} << (bits - low_bits_)) - 1;
    for (int pair = 0; pair < kRounds / 2; ++pair) {
      const uint64_t w = word(stream, pair, 0);
      keys_[2 * pair] = uint32_t(w);
      keys_[2 * pair + 1] = uint32_t(w >> 32);
    }
    Words words(stream, kRounds / 2);
    rotation_ = bounded<uint64_t>(n, words(), words);
  }

  uint64_t size() const { return n_; }

  // The value at `position` in [0, n).
  uint64_t operator()(uint64_t position) const {
    uint64_t x = position;
    do x = scramble(x);  // fewer than two turns on average, unless n is below 2^kLeastBits
    while (x >= n_);
    x += rotation_;
    return x < n_ ? x : x - n_;
  }

 private:
  static constexpr int kRounds = 8;
  // Halves of one or two bits would not mix; a small n walks its cycle a little longer instead.
  static constexpr int kLeastBits = 8;

  // C. Wellons' "lowbias32" integer hash (public domain, nullprogram.com/blog/2018/07/31).
  static uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352d;
    x = (x ^ (x >> 15)) * 0x846ca68b;
    return x ^ (x >> 16);
  }

  uint64_t scramble(uint64_t x) const {
    uint32_t low = uint32_t(x) & low_mask_, high = uint32_t(x >> low_bits_);
    for (int round = 0; round < kRounds; round += 2) {
      high ^= mix(low ^ keys_[round]) & high_mask_;
      low ^= mix(high ^ keys_[round + 1]) & low_mask_;
    }
    return uint64_t{high} << low_bits_ | low;
  }

  uint64_t n_, rotation_;
  int low_bits_;
  uint32_t low_mask_, high_mask_, keys_[kRounds];
};

// Visits positions [position, position + count) of the permutation in order, on several threads, and writes what it
// finds without the values whose bit is set in `skip` (null: none is). Returns how many it wrote; out has room for
// `count`.
inline uint64_t visit_threaded(const Permutation& permutation, uint64_t position, uint64_t count, const uint8_t* skip,
                               int64_t* out) {
  std::mutex mutex;
  std::vector<std::pair<uint64_t, uint64_t>> ranges;  // where each begins, and how many it wrote from there on
  parallel_for(count, kLeastLookedUp, 1, [&](uint64_t begin, uint64_t end) {
    uint64_t taken = begin;
    for (uint64_t p = begin; p < end; ++p) {
      const uint64_t i = permutation(position + p);
      if (skip && (skip[i >> 3] >> (i & 7) & 1)) continue;
      out[taken++] = int64_t(i);
    }
    const std::lock_guard lock(mutex);
    ranges.emplace_back(begin, taken - begin);
  });
  std::sort(ranges.begin(), ranges.end());
  uint64_t taken = 0;
  for (const auto& [begin, written] : ranges) {
    if (begin != taken) std::copy_n(out + begin, written, out + taken);
    taken += written;
  }
  return taken;
}

// Visits positions [position, n) of the permutation in order and writes what it finds, without the values whose
// bit is set in `skip` (null: none is), until `count` are written or the positions are used up. Returns how
// many were written and the position to go on from. O(1) memory.
inline std::pair<uint64_t, uint64_t> walk_permutation(const Permutation& permutation, uint64_t position,
                                                      const uint8_t* skip, int64_t* out, uint64_t count) {
  uint64_t taken = 0;
  auto missing = [&] {
    return position < permutation.size() ? std::min(count - taken, permutation.size() - position) : 0;
  };
  // As many positions as values are missing are none too many, so the last visited is the last that is needed.
  for (uint64_t round; threads_for(round = missing(), kLeastLookedUp) > 1; position += round)
    taken += visit_threaded(permutation, position, round, skip, out + taken);
  for (; taken < count && position < permutation.size(); ++position) {
    const uint64_t i = permutation(position);
    if (skip && (skip[i >> 3] >> (i & 7) & 1)) continue;
    out[taken++] = int64_t(i);
  }
  return {taken, position};
}

}  // namespace fastprio
