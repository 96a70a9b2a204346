// csrc/sum_tree.cpp: how the tree of sum_tree.h is built, updated and drawn from.
#include "sum_tree.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <span>
#include <utility>

#include "bounded.h"
#include "kernels.h"
#include "permutation.h"
#include "threads.h"

namespace fastprio {
namespace {

constexpr int kRedraws = 8;  // after so many repeats in a row, "unique" computes the answer instead

constexpr uint64_t kNode = kFanout * kFanout;   // leaves below a node of the lowest level
constexpr uint64_t kPiece = uint64_t{1} << 13;  // leaves that stay in a core's cache from being written to being summed
constexpr uint64_t kRelease = uint64_t{1} << 19;  // leaves on a huge page

constexpr uint64_t kMostCut = uint64_t{1} << 20;  // draws of a group whose order each thread may make anew: 12 MB

uint64_t round_up(uint64_t n) { return (n + kFanout - 1) / kFanout * kFanout; }

// The least of the positions that threads find wrong, or the largest of the bits that they find.
template <class T, class Better>
void keep(std::atomic<T>& kept, T found, const Better& better) {
  T before = kept;
  while (better(found, before) && !kept.compare_exchange_weak(before, found)) {
  }
}

// The bits of the largest priority; at least kInfinityBits if one is not valid. Negative numbers but for -0.0 leave the
// sign bit in `negative`: -magnitude has it unless the magnitude is 0. Written so that it becomes vector code.
inline __attribute__((always_inline)) uint32_t largest_loop(const float* priorities, uint64_t count) {
  int32_t most = 0, negative = 0;
  for (uint64_t j = 0; j < count; ++j) {
    const int32_t bits = std::bit_cast<int32_t>(priorities[j]);
    most = std::max(most, bits);
    negative |= bits & -(bits & 0x7FFFFFFF);
  }
  return uint32_t(most) | (uint32_t(negative) & kNegativeZeroBits);
}

#if defined(__x86_64__)
[[gnu::target("avx2")]] uint32_t largest_avx2(const float* priorities, uint64_t count) {
  return largest_loop(priorities, count);
}
#endif

uint32_t largest(const float* priorities, uint64_t count) {
#if defined(__x86_64__)
  if (isa() != Isa::kBaseline) return largest_avx2(priorities, count);  // three times as fast, as fast as memory is
#endif
  return largest_loop(priorities, count);
}

// The largest of some priorities, as bits, or the position of the first that is not valid.
Status scan(const float* priorities, uint64_t count, uint32_t& max_bits) {
  std::atomic<uint32_t> most{0};
  std::atomic<uint64_t> bad{count};
  parallel_for(count, kLeastScanned, 1, [&](uint64_t begin, uint64_t end) {
    const uint32_t found = largest(priorities + begin, end - begin);
    keep(most, found, std::greater<>());
    if (found < kInfinityBits) return;
    while (priority_bits(priorities[begin]) < kInfinityBits) ++begin;
    keep(bad, begin, std::less<>());
  });
  if (most >= kInfinityBits) return {Status::kBadPriority, bad};
  max_bits = most;
  return {};
}

}  // namespace

SumTree::SumTree(uint64_t size, int fixed_scale)
    : size_(size),
      fixed_scale_(fixed_scale),
      scale_(fixed_scale == kFreeScale ? scale_of(0) : fixed_scale),
      leaves_(round_up(size)) {
  num_threads();  // so that nothing later can fail on a malformed FASTPRIO_NUM_THREADS
  uint64_t n = size;
  do {
    n = (n + kFanout - 1) / kFanout;
    levels_.emplace_back(round_up(n));
  } while (n > kFanout);
}

size_t SumTree::bytes() const {
  size_t bytes = leaves_.size() * sizeof(float) + parked_bits_.size();
  for (const auto& level : levels_) bytes += level.size() * sizeof(uint64_t);
  return bytes;
}

View SumTree::view() const {
  const bool common = fixed_scale_ == kFreeScale && scale_ <= kCommonScale;
  return {leaves_.data(), levels_.data(), levels(), scale_, common, parked_.active ? parked_bits_.data() : nullptr};
}

void SumTree::add(uint64_t i, uint64_t delta) {
  const int64_t index = int64_t(i);
  int shift = 0;
  for (auto& level : levels_) kernels().add(level.data(), &index, shift += kShift, &delta, 1);
  total_ += delta;
}

// Writes all sums, and before that, a piece at a time, lets write(begin, end) set the leaves that they are of.
template <class Write>
void SumTree::build(uint64_t unit, const Write& write) {
  // A node's total is put where its entry among its parent's children is, and becomes a sum of those before it there.
  auto totals = [&](size_t k) { return k + 1 < levels_.size() ? levels_[k + 1].data() : &total_; };
  for (size_t k = 1; k < levels_.size(); ++k)
    std::fill(levels_[k].data() + levels_[k - 1].size() / kFanout, levels_[k].data() + levels_[k].size(), 0);
  parallel_for(leaves_.size(), kLeastScanned, unit, [&](uint64_t begin, uint64_t end) {
    for (uint64_t next; begin < end; begin = next) {
      next = std::min(begin / kPiece * kPiece + kPiece, end);
      write(begin, std::min(next, size_));
      View piece = view();
      piece.leaves += begin;
      if (piece.parked) piece.parked += begin / 8;
      kernels().sum_leaves(piece, (next - begin) / kFanout, levels_[0].data() + begin / kFanout,
                           totals(0) + begin / kNode);
    }
  });
  for (size_t k = 1; k < levels_.size(); ++k)
    parallel_for(levels_[k].size() / kFanout, kLeastScanned / kFanout, 1, [&](uint64_t begin, uint64_t end) {
      for (uint64_t node = begin; node < end; ++node) {
        uint64_t before = 0;
        for (uint64_t& entry : std::span(levels_[k].data() + node * kFanout, kFanout))
          before += std::exchange(entry, before);
        totals(k)[node] = before;
      }
    });
}

void SumTree::rebuild() {
  build(kNode, [](uint64_t, uint64_t) {});
}

// Raises M to max_bits if that is larger.
void SumTree::offer(uint32_t max_bits) {
  if (max_bits <= max_bits_) return;
  max_bits_ = max_bits;
  if (fixed_scale_ != kFreeScale || scale_of(max_bits) == scale_) return;
  scale_ = scale_of(max_bits);
  if (total_ > 0) rebuild();  // all sums are zero under any scale
}

// Adds sums[c], modulo 2^64, to what stands after entry c of level k, which is one of the two uppermost, and so on up.
void SumTree::add_everywhere(int k, const uint64_t* sums) {
  uint64_t above[kFanout];
  for (uint64_t b = 0; b < levels_[k].size(); b += kFanout) {
    uint64_t before = 0;
    for (uint64_t c = b; c < b + kFanout; ++c) {
      levels_[k][c] += before;
      before += sums[c];
    }
    above[b / kFanout] = before;
  }
  if (k + 1 == levels()) return;
  for (uint64_t c = levels_[k].size() / kFanout; c < kFanout; ++c) above[c] = 0;
  add_everywhere(k + 1, above);
}

Status SumTree::update(const int64_t* indices, const float* priorities, size_t count) {
  uint32_t max_bits = 0;
  bool good = true;
  for (size_t j = 0; j < count; ++j) {
    const uint32_t bits = priority_bits(priorities[j]);
    good &= (uint64_t(indices[j]) < size_) & (bits < kInfinityBits);
    max_bits = std::max(max_bits, bits);
  }
  if (!good)
    for (size_t j = 0; j < count; ++j) {
      if (uint64_t(indices[j]) >= size_) return {Status::kIndexOutOfRange, j};
      if (priority_bits(priorities[j]) >= kInfinityBits) return {Status::kBadPriority, j};
    }
  offer(max_bits);
  // What a later index will change is asked for early: its leaf and its node above the leaves. Nodes further up are
  // few.
  constexpr size_t kAhead = 64;
  auto prefetch = [&](uint64_t i) {
    const uint64_t* node = levels_[0].data() + i / (kFanout * kFanout) * kFanout;
    __builtin_prefetch(&leaves_[i], 1);
    __builtin_prefetch(node, 1);
    __builtin_prefetch(node + kFanout / 2, 1);
  };
  uint32_t before[256], after[256];
  uint64_t deltas[256];
  for (size_t first = 0; first < count; first += std::size(deltas)) {
    const size_t n = std::min(std::size(deltas), count - first);
    const int64_t* at = indices + first;
    for (size_t j = 0; j < std::min(kAhead, n); ++j) prefetch(uint64_t(at[j]));
    for (size_t j = 0; j < n; ++j) {  // in order: the last duplicate wins, and the deltas add up
      if (j + kAhead < n) prefetch(uint64_t(at[j + kAhead]));
      before[j] = std::bit_cast<uint32_t>(leaves_[at[j]]);
      after[j] = priority_bits(priorities[first + j]);
      leaves_[at[j]] = std::bit_cast<float>(after[j]);
    }
    kernels().deltas(view(), before, after, n, deltas);
    if (parked_.active)
      for (size_t j = 0; j < n; ++j)
        if (parked_bits_[at[j] >> 3] >> (at[j] & 7) & 1) deltas[j] = 0;
    const int apart = n < 32 ? levels() : std::max(levels() - 2, 0);  // levels where each delta goes up by itself
    for (int k = 0; k < apart; ++k) kernels().add(levels_[k].data(), at, kShift * (k + 1), deltas, n);
    if (apart < levels()) {
      uint64_t sums[kFanout * kFanout] = {};
      for (size_t j = 0; j < n; ++j) sums[uint64_t(at[j]) >> kShift * (apart + 1)] += deltas[j];
      add_everywhere(apart, sums);
    }
    for (size_t j = 0; j < n; ++j) total_ += deltas[j];
  }
  return {};
}

void SumTree::put(uint64_t begin, const float* priorities, uint64_t count) {
  for (uint64_t j = 0; j < count; ++j) leaves_[begin + j] = std::bit_cast<float>(priority_bits(priorities[j]));
}

Status SumTree::write(uint64_t begin, const float* priorities, size_t count) {
  uint32_t max_bits;
  const Status status = scan(priorities, count, max_bits);
  if (!status.ok()) return status;
  parallel_for(count, kLeastScanned, 1,
               [&](uint64_t first, uint64_t last) { put(begin + first, priorities + first, last - first); });
  max_bits_ = std::max(max_bits_, max_bits);
  return {};
}

void SumTree::adopt(SumTree& written) {
  forget_parked();
  offer_anew(written.max_bits_);
  // Copied, so that views of our leaves stay valid. What has been copied goes, so that a tree not touched so far takes
  // no more memory than the other did.
  build(kRelease, [&](uint64_t begin, uint64_t end) {
    put(begin, written.leaves_.data() + begin, end - begin);
    if (end % kRelease == 0) written.leaves_.forget(end - kRelease, end);
  });
}

Status SumTree::fill(const float* priorities) {
  uint32_t max_bits;
  const Status status = scan(priorities, size_, max_bits);
  if (!status.ok()) return status;
  forget_parked();
  offer_anew(max_bits);
  build(kNode, [&](uint64_t begin, uint64_t end) { put(begin, priorities + begin, end - begin); });
  return {};
}

Status SumTree::fill(float priority) {
  const uint32_t bits = priority_bits(priority);
  if (bits >= kInfinityBits) return {Status::kBadPriority, 0};
  forget_parked();
  offer_anew(bits);
  build(kNode, [&](uint64_t begin, uint64_t end) {
    std::fill(leaves_.data() + begin, leaves_.data() + end, std::bit_cast<float>(bits));
  });
  return {};
}

// M becomes max_bits, larger or smaller; the sums are to follow.
void SumTree::offer_anew(uint32_t max_bits) {
  max_bits_ = max_bits;
  if (fixed_scale_ == kFreeScale) scale_ = scale_of(max_bits);
}

void SumTree::set_max(uint32_t bits) {
  offer_anew(bits);
  rebuild();
}

void SumTree::refit() {
  uint32_t max_bits;
  scan(leaves_.data(), size_, max_bits);  // all are valid
  forget_parked();
  set_max(max_bits);
}

int SumTree::refit_gain(int least) const {
  if (fixed_scale_ != kFreeScale || max_bits_ == 0) return 0;
  // Follow the heaviest child down: the leaf found there bounds the gain, mostly without a look at all leaves.
  uint64_t i = 0, node_total = total_;
  for (int k = levels() - 1; k >= 0; --k) {
    const uint64_t* node = levels_[k].data() + i * kFanout;
    uint64_t heaviest = 0, most = 0;
    for (uint64_t c = 0; c < kFanout; ++c) {
      const uint64_t sum = (c + 1 < kFanout ? node[c + 1] : node_total) - node[c];
      if (sum > most) {
        most = sum;
        heaviest = c;
      }
    }
    i = i * kFanout + heaviest;
    node_total = most;
  }
  uint32_t max_bits = largest(leaves_.data() + i * kFanout, kFanout);
  if (max_bits == 0 || scale_of(max_bits) - scale_ >= least) scan(leaves_.data(), size_, max_bits);
  const int gain = max_bits == 0 ? 0 : scale_of(max_bits) - scale_;
  return gain >= least ? gain : 0;
}

Status SumTree::gather(const int64_t* indices, size_t count, float* priorities) const {
  for (size_t j = 0; j < count; ++j)
    if (uint64_t(indices[j]) >= size_) return {Status::kIndexOutOfRange, j};
  for (size_t j = 0; j < count; ++j) priorities[j] = leaves_[indices[j]];
  return {};
}

void SumTree::descend(const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses, uint64_t* rests) const {
  kernels().descend(view(), r, count, indices, masses, rests);
}

SumTree::Leaf SumTree::find_one(uint64_t r) const {
  int64_t index;
  uint32_t mass;
  uint64_t rest;
  descend(&r, 1, &index, &mass, &rest);
  return {uint64_t(index), rest, mass};
}

Status SumTree::find(const uint64_t* masses, size_t count, int64_t* indices) const {
  std::atomic<uint64_t> bad{count};
  parallel_for(count, kLeastScanned, 1, [&](uint64_t begin, uint64_t end) {
    while (begin < end && masses[begin] < total_) ++begin;
    if (begin < end) keep(bad, begin, std::less<>());
  });
  if (bad < count) return {total_ ? Status::kMassOutOfRange : Status::kEmpty, bad};
  parallel_for(count, kLeastLookedUp, 1, [&](uint64_t begin, uint64_t end) {
    uint32_t leaf_masses[256];
    for (uint64_t first = begin; first < end; first += 256)
      descend(masses + first, std::min<uint64_t>(256, end - first), indices + first, leaf_masses, nullptr);
  });
  return {};
}

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

void SumTree::forget_parked() {
  parked_ = {};
  parked_bits_ = {};
}

void SumTree::set_parked(const Parked& parked, std::vector<uint8_t> bits) {
  parked_ = parked;
  parked_bits_ = std::move(bits);
  if (parked_.active) parked_bits_.resize(leaves_.size() / 8);
  rebuild();
}

}  // namespace fastprio
