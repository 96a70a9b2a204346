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
  kShard = 6,    // the seeds of ranks that draw from shards of their own
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
