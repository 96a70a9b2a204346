// csrc/sum_tree.h: the exact sum tree. Draws an example with probability proportional to its priority.
//
// Structure. The leaves are the user's float32 priorities, bit for bit, sixteen to a cache line. Above them, level by
// level in one contiguous array each, stand the exact 64-bit sums of the leaves' integer masses (mass.h), kFanout
// children to a node, up to a top of one node. Entry c of a node is the sum of its children before c, so that a search
// compares and an update adds to the entries after. Nothing else is stored: 4 + 8/16 + 8/256 + ... = 4.53 bytes an
// example, and one bit more once scheme "epoch" is used.
//
// Promise.
//  * P(i) = mass(i) / total exactly, given ideal random words: a draw is an integer r, uniform in
//    [0, total), and find(r) is the one leaf with prefix(i) <= r < prefix(i + 1). No rounded number takes part.
//  * Integer sums are associative: the same bits for any order of updates, any split into calls, any
//    SIMD path. They do not drift.
//  * Zero is never drawn, everything above zero can be: mass(p) >= 1 for p > 0.
//  * A call is all or nothing. It is checked whole before the first write; what was wrong, and where,
//    comes back as a Status. Nothing here throws but allocation, and construction where FASTPRIO_NUM_THREADS
//    is malformed; only construction and the first "epoch" draw allocate more than a call's scratch.
//
// Scale. masses are p * 2^scale, and scale is a function of M, the largest priority offered since the
// last refit() or fill (losing duplicates included), in steps of 4 bits. When M enters another group, all
// sums are rebuilt, O(size). Between two refits the bits therefore depend on the set of updates alone.
//
// Threads: none of the members locks. Callers serialise (fastprio/tree.py holds one lock a tree). A call with enough
// to do starts threads of its own and ends them (threads.h); the bits do not depend on their number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "lines.h"
#include "mass.h"
#include "philox.h"

namespace fastprio {

constexpr uint64_t kMaxSize = uint64_t{1} << 32;
constexpr uint64_t kMaxGroup = uint64_t{1} << 31;

// What was wrong with a call, and at which position of its arguments. Nothing was changed.
struct Status {
  enum Kind {
    kOk,
    kIndexOutOfRange,  // indices[position] is not in [0, size)
    kBadPriority,      // priorities[position] is not finite and >= 0
    kMassOutOfRange,   // masses[position] is not in [0, total)
    kEmpty,            // nothing has a priority above zero
    kExhausted,        // "unique", "epoch": draw `position` of this call finds nothing left
    kGroupSplit,       // "unique": offset is not a multiple of group
    kNotNext,          // "epoch": offset is neither 0 nor the next draw of this seed and epoch
  };
  Kind kind = kOk;
  uint64_t position = 0;
  bool ok() const { return kind == kOk; }
};

// How the draws of one call hang together. Draws belong to groups of B: draw d is number d mod B of group
// d div B. See README.md, "The schemes", for the laws and their proofs.
enum class Scheme {
  kIid,         // independent
  kStratified,  // draw d falls in a stratum of its own: target floor((k * total + u_d) / B)
  kSystematic,  // the same with one u for the whole group
  kUnique,      // no repeats within a group (successive sampling)
  kEpoch,       // no repeats within an epoch: drawn leaves are parked at mass zero until the next one
};

struct Request {
  uint64_t seed;
  uint32_t epoch;
  uint64_t offset;  // the number of the first draw
  uint64_t count;
  Scheme scheme;
  uint64_t group;  // B, in [1, kMaxGroup]; not used by kIid and kEpoch
};

class SumTree {
 public:
  static constexpr int kFreeScale = 1 << 20;

  // All priorities zero. size is in [1, kMaxSize]. A fixed scale is for tests with small masses.
  explicit SumTree(uint64_t size, int fixed_scale = kFreeScale);

  uint64_t size() const { return size_; }
  uint64_t total() const { return total_; }
  int scale() const { return scale_; }
  uint32_t max_bits() const { return max_bits_; }  // M, as the bits of a float
  size_t bytes() const;

  // priorities[j] becomes the priority of indices[j]; the last duplicate wins. O(count * levels).
  Status update(const int64_t* indices, const float* priorities, size_t count);

  // All priorities at once; forgets M and what was parked. O(size).
  Status fill(const float* priorities);
  Status fill(float priority);

  // For a fill that comes in pieces: write() the leaves of an otherwise unused tree, without sums, then
  // adopt() copies the leaves, with the same result as fill(). It leaves nothing of use in `written`, whose memory it
  // gives back on the way. Or, where nobody else has seen the tree yet, set_max() ends a fill by write().
  Status write(uint64_t begin, const float* priorities, size_t count);
  void adopt(SumTree& written);

  // M becomes the largest priority there is, nothing stays parked, and the sums follow: bit-equal to a
  // tree filled afresh with the same priorities. O(size).
  void refit();
  // By how many bits the scale would grow, that is, how much resolution refit() would win; 0 if fewer than
  // `least`, which is >= 1. O(levels) where a heavy leaf shows that, else O(size).
  int refit_gain(int least) const;
  // For loading a saved state: M as it was. bits are those of a valid priority >= every leaf.
  void set_max(uint32_t bits);

  Status gather(const int64_t* indices, size_t count, float* priorities) const;
  const float* priorities() const { return leaves_.data(); }

  // indices[j] = the leaf with prefix(i) <= masses[j] < prefix(i + 1).
  Status find(const uint64_t* masses, size_t count, int64_t* indices) const;

  // Draws request.offset .. + count. probabilities[j] is mass / total for the draw; for kUnique and kEpoch
  // it is conditional on the draws before it in the group or epoch. Only kEpoch changes the tree.
  Status sample(const Request& request, int64_t* indices, double* probabilities);

  // What scheme "epoch" has parked, for saving and loading: a bit an example (empty: nothing; padded with
  // zeros to whole blocks of leaves), and which draw comes next.
  struct Parked {
    bool active = false;
    uint64_t seed = 0, next = 0;
    uint32_t epoch = 0;
  };
  const Parked& parked() const { return parked_; }
  const std::vector<uint8_t>& parked_bits() const { return parked_bits_; }
  void set_parked(const Parked& parked, std::vector<uint8_t> bits);

  // For tests: level 0 is the one above the leaves; entry c of a node is the sum of its children before c.
  int levels() const { return int(levels_.size()); }
  const uint64_t* level(int k) const { return levels_[k].data(); }
  uint64_t level_size(int k) const { return levels_[k].size(); }

 private:
  struct Leaf {
    uint64_t index, rest;  // rest = r - prefix(index)
    uint32_t mass;
  };

  View view() const;
  Leaf find_one(uint64_t r) const;
  void add(uint64_t i, uint64_t delta);
  void add_everywhere(int k, const uint64_t* sums);
  template <class Write>
  void build(uint64_t unit, const Write& write);
  void rebuild();
  void put(uint64_t begin, const float* priorities, uint64_t count);
  void offer(uint32_t max_bits);
  void offer_anew(uint32_t max_bits);
  void forget_parked();
  void descend(const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses, uint64_t* rests) const;
  void targets(const Request& request, uint64_t first, size_t count, uint64_t* r) const;
  Status sample_part(const Request& request, int64_t* indices, double* probabilities) const;
  Status sample_unique(const Request& request, int64_t* indices, double* probabilities) const;
  Status sample_epoch(const Request& request, int64_t* indices, double* probabilities);

  uint64_t size_;
  uint64_t total_ = 0;
  uint32_t max_bits_ = 0;
  int fixed_scale_, scale_;
  Lines<float> leaves_;
  std::vector<Lines<uint64_t>> levels_;
  Parked parked_;
  std::vector<uint8_t> parked_bits_;
};

}  // namespace fastprio
