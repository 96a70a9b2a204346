// csrc/philox.h: counter-based random bits. Every random number of the project comes from here.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11)
// maps a 128-bit counter and a 64-bit key to 128 random bits, with no state between calls. So draw k of
// epoch e has the same bits whichever thread asks for it, in whatever order, before or after a resume.
//
//   key      = the 64-bit seed
//   counter  = { block (64 bits), epoch (32 bits), purpose (8 bits) and attempt (24 bits) }
//
// A block holds two 64-bit words: word n of a stream is half n & 1 of block n >> 1. "Attempt" numbers
// the words that one draw may use up: rejection in bounded.h takes attempt 0, then 1, then 2.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace fastprio {

// What random bits are used for. Two uses never share bits, because the purpose is in the counter.
// The numbers are part of the promise that a seed gives the same sequence: never renumber them.
enum class Purpose : uint32_t {
  kDraw = 0,     // the integer that a draw looks up in the tree
  kStratum = 1,  // the order in which the strata of a group are handed out
  kCover = 2,    // the order in which examples not yet seen are visited
  kPlan = 3,     // the order of an epoch whose examples a policy has chosen
  kRedraw = 4,   // scheme "unique": what replaces a repeat
  kPolicy = 5,   // a policy's or a selector's own random numbers
};

// A stream of 64-bit words, addressed by (word number, attempt).
struct Stream {
  uint64_t seed;
  uint32_t epoch;
  Purpose purpose;
};

using Block = std::array<uint32_t, 4>;

// The 10-round Philox4x32 bijection. Known answers: tests/data/philox4x32.txt.
inline Block philox4x32(Block counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {uint32_t(b >> 32) ^ counter[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ counter[3] ^ key[1],
               uint32_t(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

inline Block block(const Stream& stream, uint64_t number, uint32_t attempt) {
  return philox4x32(
      {uint32_t(number), uint32_t(number >> 32), stream.epoch, uint32_t(stream.purpose) << 24 | (attempt & 0xFFFFFF)},
      {uint32_t(stream.seed), uint32_t(stream.seed >> 32)});
}

inline uint64_t word(const Stream& stream, uint64_t n, uint32_t attempt) {
  const Block b = block(stream, n >> 1, attempt);
  return (n & 1) ? (b[2] | uint64_t{b[3]} << 32) : (b[0] | uint64_t{b[1]} << 32);
}

// out[j] = word(stream, first + j, 0) for j in [0, count). Sixteen blocks go through the rounds side by
// side, lane by lane, which the compiler turns into vector code; the bits are those of word().
inline __attribute__((always_inline)) void fill_words(const Stream& stream, uint64_t first, size_t count,
                                                      uint64_t* out) {
  constexpr int kLanes = 16;
  size_t done = 0;
  if (count > 0 && (first & 1)) out[done++] = word(stream, first, 0);
  while (done < count) {
    const uint64_t number = (first + done) >> 1;
    uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      c0[l] = uint32_t(number + l);
      c1[l] = uint32_t((number + l) >> 32);
      c2[l] = stream.epoch;
      c3[l] = uint32_t(stream.purpose) << 24;
    }
    uint32_t k0 = uint32_t(stream.seed), k1 = uint32_t(stream.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85)
      for (int l = 0; l < kLanes; ++l) {
        // High and low halves apart: that is how compilers recognise a vector multiplication.
        const uint32_t a_high = uint32_t(uint64_t{0xD2511F53} * c0[l] >> 32), a_low = 0xD2511F53u * c0[l];
        const uint32_t b_high = uint32_t(uint64_t{0xCD9E8D57} * c2[l] >> 32), b_low = 0xCD9E8D57u * c2[l];
        c0[l] = b_high ^ c1[l] ^ k0;
        c1[l] = b_low;
        c2[l] = a_high ^ c3[l] ^ k1;
        c3[l] = a_low;
      }
    for (int l = 0; l < kLanes && done < count; ++l) {
      out[done++] = c0[l] | uint64_t{c1[l]} << 32;
      if (done < count) out[done++] = c2[l] | uint64_t{c3[l]} << 32;
    }
  }
}

// The words that one draw may use up, one after another: attempt 0, 1, 2, ...
class Words {
 public:
  Words(const Stream& stream, uint64_t n, uint32_t first_attempt = 0)
      : stream_(stream), n_(n), attempt_(first_attempt) {}
  uint64_t operator()() { return word(stream_, n_, attempt_++); }

 private:
  Stream stream_;
  uint64_t n_;
  uint32_t attempt_;
};

}  // namespace fastprio
