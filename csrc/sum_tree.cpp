// csrc/sum_tree.cpp: how the tree of sum_tree.h is built, updated and searched. How it is drawn from: schemes.cpp.
#include "sum_tree.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <span>
#include <utility>

#include "kernels.h"
#include "threads.h"

namespace fastprio {
namespace {

constexpr uint64_t kNode = kFanout * kFanout;   // leaves below a node of the lowest level
constexpr uint64_t kPiece = uint64_t{1} << 13;  // leaves that stay in a core's cache from being written to being summed
constexpr uint64_t kRelease = uint64_t{1} << 19;  // leaves on a huge page

uint64_t round_up(uint64_t n) { return (n + kFanout - 1) / kFanout * kFanout; }

// The largest of some priorities, as bits, or the position of the first that is not valid.
Status scan(const float* priorities, uint64_t count, uint32_t& max_bits) {
  std::atomic<uint32_t> most{0};
  std::atomic<uint64_t> bad{count};
  parallel_for(count, kLeastScanned, 1, [&](uint64_t begin, uint64_t end) {
    const uint32_t found = kernels().largest(priorities + begin, end - begin);
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
  if (priorities < leaves_.data() + size_ && leaves_.data() < priorities + count) {  // a view of our own leaves
    const std::vector<float> copy(priorities, priorities + count);
    return update(indices, copy.data(), count);
  }
  uint32_t max_bits = 0;
  bool good = true;
  for (size_t j = 0; j < count; ++j) {
    const uint32_t bits = priority_bits(priorities[j]);
    good &= (uint64_t(indices[j]) < size_) & (bits < kInfinityBits);
    max_bits = std::max(max_bits, bits);
  }
  if (!good)
    for (size_t j = 0;; ++j) {
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
  uint32_t max_bits = kernels().largest(leaves_.data() + i * kFanout, kFanout);
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
