// csrc/schemes.cpp: how draws are made from the tree of sum_tree.h. The laws are in README.md, "The schemes".
#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <utility>
#include <vector>

#include "bounded.h"
#include "kernels.h"
#include "permutation.h"
#include "sum_tree.h"
#include "threads.h"

namespace fastprio {
namespace {

constexpr int kRedraws = 8;  // after so many repeats in a row, "unique" computes the answer instead
constexpr uint64_t kMostCut = uint64_t{1} << 20;  // draws of a group whose order each thread may make anew: 12 MB

}  // namespace

// r[j] = the integer that draw request.offset + first + j looks up, for the schemes that need no tree for it.
void SumTree::targets(const Request& request, uint64_t first, size_t count, uint64_t* r) const {
  const Stream stream{request.seed, request.epoch, Purpose::kDraw};
  const uint64_t begin = request.offset + first;
  auto uniform = [&](uint64_t draw, uint64_t first_word) {
    return bounded<uint64_t>(total_, first_word, Words(stream, draw, 1));
  };
  if (request.scheme != Scheme::kSystematic) {
    kernels().words(stream, begin, count, r);
    for (size_t j = 0; j < count; ++j) r[j] = uniform(begin + j, r[j]);
    if (request.scheme != Scheme::kStratified) return;
  }
  // Number k of a group of B looks up floor((k * total + u) / B), k coming in the group's keyed order. With
  // total = q * B + rem that is k * q + (k * rem + u) / B, where nothing exceeds 64 bits: rem < B <= 2^31.
  const uint64_t b = request.group, q = total_ / b, rem = total_ % b;
  const Stream order_stream{request.seed, request.epoch, Purpose::kStratum};
  const int shift = std::has_single_bit(b) ? std::countr_zero(b) : -1;  // batches mostly are powers of two
  constexpr uint64_t kSmall = 1024;                                     // a group that is not worth an allocation
  uint64_t small_words[kSmall];
  uint32_t small_order[kSmall];
  std::vector<uint64_t> large_words(b > kSmall ? b : 0);
  std::vector<uint32_t> large_order(b > kSmall ? b : 0);
  uint64_t* const words = b > kSmall ? large_words.data() : small_words;
  uint32_t* const order = b > kSmall ? large_order.data() : small_order;
  for (uint64_t j = 0; j < count;) {
    const uint64_t group = (begin + j) / b, place = (begin + j) % b, n = std::min<uint64_t>(b - place, count - j);
    kernels().words(order_stream, group * b, b, words);
    shuffle(order_stream, group * b, words, uint32_t(b), order);
    const uint64_t shared = request.scheme == Scheme::kSystematic ? uniform(group * b, word(stream, group * b, 0)) : 0;
    for (uint64_t m = 0; m < n; ++m) {
      const uint64_t k = order[place + m], u = request.scheme == Scheme::kSystematic ? shared : r[j + m];
      r[j + m] = k * q + (shift >= 0 ? (k * rem + u) >> shift : (k * rem + u) / b);
    }
    j += n;
  }
}

Status SumTree::sample(const Request& request, int64_t* indices, double* probabilities) {
  if (request.count == 0) return {};
  if (request.scheme == Scheme::kEpoch) return sample_epoch(request, indices, probabilities);
  if (total_ == 0) return {Status::kEmpty, 0};
  const bool unique = request.scheme == Scheme::kUnique;
  const uint64_t group = request.scheme == Scheme::kIid ? 1 : request.group, into = request.offset % group;
  if (unique && into != 0) return {Status::kGroupSplit, 0};
  const uint64_t threads = threads_for(request.count, kLeastLookedUp);
  if (threads == 1)
    return unique ? sample_unique(request, indices, probabilities) : sample_part(request, indices, probabilities);
  // Draws hang together within a group only, so any range of whole groups is a request of its own. So is a part of a
  // group, but for "unique"; each part then makes the whole group's order for itself, which takes as long as one
  // thread would for all, but memory in every thread.
  const bool cut_groups = !unique && group > request.count / threads && group <= kMostCut;
  const uint64_t unit = cut_groups ? (request.count + threads - 1) / threads : group, before = cut_groups ? 0 : into;
  std::atomic<uint64_t> bad{request.count};
  parallel_for(before + request.count, kLeastLookedUp, unit, [&](uint64_t begin, uint64_t end) {
    const uint64_t first = begin > before ? begin - before : 0;  // counted from where the first group begins
    Request part = request;
    part.offset += first;
    part.count = end - before - first;
    const Status status = unique ? sample_unique(part, indices + first, probabilities + first)
                                 : sample_part(part, indices + first, probabilities + first);
    if (!status.ok()) keep(bad, first + status.position, std::less<>());
  });
  if (bad < request.count) return {Status::kExhausted, bad};
  return {};
}

// The same for the schemes that are neither "epoch" nor "unique", on one thread.
Status SumTree::sample_part(const Request& request, int64_t* indices, double* probabilities) const {
  uint64_t* r = reinterpret_cast<uint64_t*>(indices);  // the targets are replaced by the leaves, in place
  targets(request, 0, request.count, r);
  const double total = double(total_);
  uint32_t masses[256];
  for (uint64_t first = 0; first < request.count; first += 256) {
    const size_t n = std::min<uint64_t>(256, request.count - first);
    descend(r + first, n, indices + first, masses, nullptr);
    for (size_t j = 0; j < n; ++j) probabilities[first + j] = double(masses[j]) / total;
  }
  return {};
}

// Successive sampling by redrawing: a candidate that the group has already is replaced by another, drawn from
// the same law, so what is accepted follows mass / (total - mass of the group so far). When that fails
// kRedraws times in a row the mass sits in the examples already taken; then r is drawn from the mass that is left
// and carried over the gaps of the taken ones, which has the same law exactly.
Status SumTree::sample_unique(const Request& request, int64_t* indices, double* probabilities) const {
  const uint64_t b = request.group;
  struct Taken {
    uint64_t prefix, mass;
  };
  const Stream redraws{request.seed, request.epoch, Purpose::kRedraw};
  const uint64_t most = std::min(b, request.count), slots = std::bit_ceil(2 * most);
  std::vector<uint64_t> r(most), rests(most);
  std::vector<uint32_t> masses(most);
  std::vector<int64_t> table(slots);
  std::vector<Taken> taken;
  auto slot_of = [&](int64_t index) {  // where index is in the table, or the empty slot where it would go
    uint64_t slot = uint64_t(index) * 0x9E3779B97F4A7C15 >> 32 & (slots - 1);
    while (table[slot] >= 0 && table[slot] != index) slot = (slot + 1) & (slots - 1);
    return slot;
  };
  for (uint64_t first = 0; first < request.count; first += b) {
    const uint64_t n = std::min(b, request.count - first);
    targets(request, first, n, r.data());
    descend(r.data(), n, indices + first, masses.data(), rests.data());
    std::fill(table.begin(), table.end(), -1);
    taken.clear();
    bool sorted = false;
    uint64_t left = total_;
    for (uint64_t j = 0; j < n; ++j) {
      if (left == 0) return {Status::kExhausted, first + j};
      Leaf leaf{uint64_t(indices[first + j]), rests[j], masses[j]};
      uint64_t at = r[j], slot = slot_of(int64_t(leaf.index));
      Words words(redraws, request.offset + first + j);
      for (int k = 0; k < kRedraws && table[slot] >= 0; ++k) {
        at = bounded<uint64_t>(total_, words(), words);
        leaf = find_one(at);
        slot = slot_of(int64_t(leaf.index));
      }
      if (table[slot] >= 0) {
        auto by_prefix = [](const Taken& x, const Taken& y) { return x.prefix < y.prefix; };
        if (!std::exchange(sorted, true)) std::sort(taken.begin(), taken.end(), by_prefix);
        at = bounded<uint64_t>(left, words(), words);
        for (const Taken& t : taken) {
          if (at < t.prefix) break;
          at += t.mass;
        }
        leaf = find_one(at);
        slot = slot_of(int64_t(leaf.index));
      }
      table[slot] = int64_t(leaf.index);
      const Taken added{at - leaf.rest, leaf.mass};
      auto place = taken.end();
      if (sorted)
        place = std::upper_bound(taken.begin(), taken.end(), added,
                                 [](const Taken& x, const Taken& y) { return x.prefix < y.prefix; });
      taken.insert(place, added);
      indices[first + j] = int64_t(leaf.index);
      probabilities[first + j] = double(leaf.mass) / double(left);
      left -= leaf.mass;
    }
  }
  return {};
}

Status SumTree::sample_epoch(const Request& request, int64_t* indices, double* probabilities) {
  const bool begins = request.offset == 0;
  if (!begins && !(parked_.active && parked_.seed == request.seed && parked_.epoch == request.epoch &&
                   parked_.next == request.offset))
    return {Status::kNotNext, 0};
  Parked before = parked_;
  std::vector<uint8_t> bits_before;
  if (begins) {
    std::vector<uint8_t> bits(leaves_.size() / 8);  // whole blocks, as searches read them
    bits_before = std::exchange(parked_bits_, std::move(bits));
    parked_ = {true, request.seed, 0, request.epoch};
    if (before.active) rebuild();
  }
  const Stream stream{request.seed, request.epoch, Purpose::kDraw};
  for (uint64_t j = 0; j < request.count; ++j) {
    if (total_ == 0) {
      for (uint64_t k = 0; k < j; ++k) parked_bits_[indices[k] >> 3] &= uint8_t(~(1u << (indices[k] & 7)));
      set_parked(before, begins ? std::move(bits_before) : std::move(parked_bits_));
      return {Status::kExhausted, j};
    }
    Words words(stream, request.offset + j);
    const Leaf leaf = find_one(bounded<uint64_t>(total_, words(), words));
    indices[j] = int64_t(leaf.index);
    probabilities[j] = double(leaf.mass) / double(total_);
    parked_bits_[leaf.index >> 3] |= uint8_t(1u << (leaf.index & 7));
    add(leaf.index, uint64_t(0) - leaf.mass);
  }
  parked_.next = request.offset + request.count;
  return {};
}

}  // namespace fastprio
