// csrc/sum_tree.cpp: how the tree of sum_tree.h is searched, updated and drawn from.
#include "sum_tree.h"

#include <algorithm>
#include <array>

#include "bounded.h"
#include "permutation.h"

namespace fastprio {

// What the hot loops read of a tree. parked is null where nothing is parked.
struct SumTree::View {
  const float* leaves;
  const Lines<uint64_t>* levels;
  int level_count;
  int scale;
  bool common;  // whether common_mass may be used
  const uint8_t* parked;
};

namespace {

using View = SumTree::View;

constexpr uint64_t kFanout = SumTree::kFanout;
constexpr int kShift = 4;          // log2(kFanout)
constexpr size_t kInFlight = 32;   // searches that go down together, so that their cache misses overlap
constexpr int kRedraws = 8;        // after so many repeats in a row, "unique" computes the answer instead

uint64_t round_up(uint64_t n) { return (n + kFanout - 1) / kFanout * kFanout; }

// kAfter[c][j] selects, for child c, the entries j that stand after it in a node.
alignas(64) constexpr auto kAfter = [] {
  std::array<std::array<uint64_t, kFanout>, kFanout> masks{};
  for (uint64_t c = 0; c < kFanout; ++c)
    for (uint64_t j = 0; j < kFanout; ++j) masks[c][j] = j > c ? ~uint64_t{0} : 0;
  return masks;
}();

// The child of a node that r falls in; r becomes the rest within it. Entry c of a node is the sum of the children
// before c, so it is the last entry that is not above r: four steps of binary search, free of branches. A child
// without mass is passed over, because the next entry is the same.
inline __attribute__((always_inline)) uint64_t pick_child(const uint64_t* node, uint64_t& r) {
  uint64_t child = node[8] <= r ? 8 : 0;
  child += node[child + 4] <= r ? 4 : 0;
  child += node[child + 2] <= r ? 2 : 0;
  child += node[child + 1] <= r ? 1 : 0;
  r -= node[child];
  return child;
}

// The same among sixteen masses, which are added up first.
inline __attribute__((always_inline)) uint64_t pick_leaf(const uint32_t* masses, uint64_t& r) {
  uint64_t node[kFanout], before = 0;
  for (uint64_t c = 0; c < kFanout; ++c) {
    node[c] = before;
    before += masses[c];
  }
  return pick_child(node, r);
}

// Vectors of sums, of the compiler's own type: a written-out loop over a node it fails to make one of. As wide as the
// instruction set has them, because wider ones are taken apart badly.
using Sums16 [[gnu::vector_size(16), gnu::aligned(16), gnu::may_alias]] = uint64_t;
using Sums32 [[gnu::vector_size(32), gnu::aligned(32), gnu::may_alias]] = uint64_t;

// Adds deltas[j] (modulo 2^64, so it may stand for a negative number) to what stands after child
// indices[j] >> shift in its node.
template <class Sums>
inline __attribute__((always_inline)) void add_loop(uint64_t* level, const int64_t* indices, int shift,
                                                    const uint64_t* deltas, size_t count) {
  for (size_t j = 0; j < count; ++j) {
    const uint64_t i = uint64_t(indices[j]) >> shift, delta = deltas[j];
    auto* node = reinterpret_cast<Sums*>(level + i / kFanout * kFanout);
    const auto* after = reinterpret_cast<const Sums*>(kAfter[i % kFanout].data());
    for (size_t v = 0; v < kFanout * sizeof(uint64_t) / sizeof(Sums); ++v) node[v] += after[v] & delta;
  }
}

inline __attribute__((always_inline)) void block_masses(const View& tree, uint64_t block, uint32_t* masses) {
  const float* leaves = tree.leaves + block * kFanout;
  if (tree.common)
    for (uint64_t c = 0; c < kFanout; ++c) masses[c] = common_mass(std::bit_cast<uint32_t>(leaves[c]), tree.scale);
  else
    for (uint64_t c = 0; c < kFanout; ++c) masses[c] = mass(std::bit_cast<uint32_t>(leaves[c]), tree.scale);
  if (!tree.parked) return;
  for (uint64_t c = 0; c < kFanout; ++c) {
    const uint64_t i = block * kFanout + c;
    if (tree.parked[i >> 3] >> (i & 7) & 1) masses[c] = 0;
  }
}

// For each r[j]: indices[j] the leaf, masses[j] its mass, rests[j] = r[j] - prefix(leaf).
inline __attribute__((always_inline)) void descend_loop(const View& tree, const uint64_t* r, size_t count,
                                                        int64_t* indices, uint32_t* masses, uint64_t* rests) {
  uint64_t node[kInFlight], rest[kInFlight];
  for (size_t first = 0; first < count; first += kInFlight) {
    const size_t n = std::min(kInFlight, count - first);
    for (size_t q = 0; q < n; ++q) {
      node[q] = 0;
      rest[q] = r[first + q];
    }
    for (int k = tree.level_count - 1; k >= 0; --k) {
      const uint64_t* sums = tree.levels[k].data();
      for (size_t q = 0; q < n; ++q) {
        node[q] = node[q] * kFanout + pick_child(sums + node[q] * kFanout, rest[q]);
        if (k > 0) {
          const uint64_t* next = tree.levels[k - 1].data() + node[q] * kFanout;
          __builtin_prefetch(next);
          __builtin_prefetch(next + kFanout / 2);
        } else {
          __builtin_prefetch(tree.leaves + node[q] * kFanout);
        }
      }
    }
    for (size_t q = 0; q < n; ++q) {
      uint32_t block[kFanout];
      block_masses(tree, node[q], block);
      const uint64_t child = pick_leaf(block, rest[q]);
      indices[first + q] = int64_t(node[q] * kFanout + child);
      masses[first + q] = block[child];
      rests[first + q] = rest[q];
    }
  }
}

// deltas[j] = mass(after[j]) - mass(before[j]), modulo 2^64.
inline __attribute__((always_inline)) void deltas_loop(const View& tree, const uint32_t* before, const uint32_t* after,
                                                       size_t count, uint64_t* deltas) {
  if (tree.common)
    for (size_t j = 0; j < count; ++j)
      deltas[j] = uint64_t{common_mass(after[j], tree.scale)} - common_mass(before[j], tree.scale);
  else
    for (size_t j = 0; j < count; ++j) deltas[j] = uint64_t{mass(after[j], tree.scale)} - mass(before[j], tree.scale);
}

// Writes the level above the leaves, whose first `blocks` entries are of blocks of leaves, and each node's total.
inline __attribute__((always_inline)) void sum_leaves_loop(const View& tree, uint64_t blocks, uint64_t* level,
                                                           uint64_t* totals) {
  uint64_t before = 0;
  for (uint64_t b = 0; b < (blocks + kFanout - 1) / kFanout * kFanout; ++b) {
    if (b % kFanout == 0) before = 0;
    level[b] = before;
    if (b < blocks) {
      uint32_t masses[kFanout];
      block_masses(tree, b, masses);
      for (uint64_t c = 0; c < kFanout; ++c) before += masses[c];
    }
    totals[b / kFanout] = before;
  }
}

// The hot loops, once for each instruction set. All copies come from the loops above, in integers only, so
// they give the same bits.
struct Kernels {
  decltype(&descend_loop) descend;
  decltype(&sum_leaves_loop) sum_leaves;
  void (*add)(uint64_t*, const int64_t*, int, const uint64_t*, size_t);
  decltype(&deltas_loop) deltas;
  decltype(&fill_words) words;
};

namespace baseline {
void descend(const View& tree, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses,
             uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count) {
  add_loop<Sums16>(level, indices, shift, deltas, count);
}
void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) {
  fill_words(stream, first, count, out);
}
void deltas(const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels kernels{descend, sum_leaves, add, deltas, words};
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
[[gnu::target("avx2,bmi,bmi2")]] void descend(const View& tree, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses,
             uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
[[gnu::target("avx2,bmi,bmi2")]] void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
[[gnu::target("avx2,bmi,bmi2")]] void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count) {
  add_loop<Sums32>(level, indices, shift, deltas, count);
}
[[gnu::target("avx2,bmi,bmi2")]] void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) {
  fill_words(stream, first, count, out);
}
[[gnu::target("avx2,bmi,bmi2")]] void deltas(const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels kernels{descend, sum_leaves, add, deltas, words};
}  // namespace avx2
namespace avx512 {
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void descend(
    const View& tree, const uint64_t* r, size_t count, int64_t* indices, uint32_t* masses, uint64_t* rests) {
  descend_loop(tree, r, count, indices, masses, rests);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void sum_leaves(const View& tree, uint64_t blocks, uint64_t* level, uint64_t* totals) {
  sum_leaves_loop(tree, blocks, level, totals);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void add(uint64_t* level, const int64_t* indices, int shift, const uint64_t* deltas, size_t count) {
  add_loop<Sums32>(level, indices, shift, deltas, count);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void words(const Stream& stream, uint64_t first, size_t count, uint64_t* out) {
  fill_words(stream, first, count, out);
}
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")]] void deltas(
    const View& tree, const uint32_t* before, const uint32_t* after, size_t count, uint64_t* out) {
  deltas_loop(tree, before, after, count, out);
}
constexpr Kernels kernels{descend, sum_leaves, add, deltas, words};
}  // namespace avx512
#endif

const Kernels& kernels_of([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::kernels;
  if (isa == Isa::kAvx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

Isa best_isa() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2})
    if (isa_available(isa)) return isa;
  return Isa::kBaseline;
}

Isa current_isa = best_isa();

}  // namespace

bool isa_available(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && isa_available(Isa::kAvx2);
  if (isa == Isa::kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#endif
  return isa == Isa::kBaseline;
}

Isa isa() { return current_isa; }
void use_isa(Isa isa) { current_isa = isa; }

SumTree::SumTree(uint64_t size, int fixed_scale)
    : size_(size),
      fixed_scale_(fixed_scale),
      scale_(fixed_scale == kFreeScale ? scale_of(0) : fixed_scale),
      leaves_(round_up(size)) {
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

SumTree::View SumTree::view() const {
  const bool common = fixed_scale_ == kFreeScale && scale_ <= kCommonScale;
  return {leaves_.data(), levels_.data(), levels(), scale_, common, parked_.active ? parked_bits_.data() : nullptr};
}

void SumTree::add(uint64_t i, uint64_t delta) {
  const int64_t index = int64_t(i);
  int shift = 0;
  for (auto& level : levels_) kernels_of(current_isa).add(level.data(), &index, shift += kShift, &delta, 1);
  total_ += delta;
}

void SumTree::rebuild() {
  std::vector<uint64_t> totals(levels_[0].size() / kFanout);
  kernels_of(current_isa).sum_leaves(view(), leaves_.size() / kFanout, levels_[0].data(), totals.data());
  for (size_t k = 1; k < levels_.size(); ++k) {
    std::vector<uint64_t> above(levels_[k].size() / kFanout);
    for (uint64_t b = 0; b < levels_[k].size(); ++b) {
      levels_[k][b] = above[b / kFanout];
      if (b < totals.size()) above[b / kFanout] += totals[b];
    }
    totals = std::move(above);
  }
  total_ = totals[0];
}

// Raises M to max_bits if that is larger.
void SumTree::offer(uint32_t max_bits) {
  if (max_bits <= max_bits_) return;
  max_bits_ = max_bits;
  if (fixed_scale_ != kFreeScale || scale_of(max_bits) == scale_) return;
  scale_ = scale_of(max_bits);
  if (total_ > 0) rebuild();  // all sums are zero under any scale
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
  constexpr size_t kAhead = 16;
  uint32_t before[256], after[256];
  uint64_t deltas[256];
  for (size_t first = 0; first < count; first += std::size(deltas)) {
    const size_t n = std::min(std::size(deltas), count - first);
    const int64_t* at = indices + first;
    for (size_t j = 0; j < std::min(kAhead, n); ++j) __builtin_prefetch(&leaves_[at[j]], 1);
    for (size_t j = 0; j < n; ++j) {  // in order: the last duplicate wins, and the deltas add up
      if (j + kAhead < n) __builtin_prefetch(&leaves_[at[j + kAhead]], 1);
      before[j] = std::bit_cast<uint32_t>(leaves_[at[j]]);
      after[j] = priority_bits(priorities[first + j]);
      leaves_[at[j]] = std::bit_cast<float>(after[j]);
    }
    kernels_of(current_isa).deltas(view(), before, after, n, deltas);
    if (parked_.active)
      for (size_t j = 0; j < n; ++j)
        if (parked_bits_[at[j] >> 3] >> (at[j] & 7) & 1) deltas[j] = 0;
    int shift = 0;
    for (auto& level : levels_) kernels_of(current_isa).add(level.data(), at, shift += kShift, deltas, n);
    for (size_t j = 0; j < n; ++j) total_ += deltas[j];
  }
  return {};
}

Status SumTree::write(uint64_t begin, const float* priorities, size_t count) {
  uint32_t max_bits = 0;
  for (size_t j = 0; j < count; ++j) max_bits = std::max(max_bits, priority_bits(priorities[j]));
  if (max_bits >= kInfinityBits)
    for (size_t j = 0; j < count; ++j)
      if (priority_bits(priorities[j]) >= kInfinityBits) return {Status::kBadPriority, j};
  for (size_t j = 0; j < count; ++j) leaves_[begin + j] = std::bit_cast<float>(priority_bits(priorities[j]));
  max_bits_ = std::max(max_bits_, max_bits);
  return {};
}

void SumTree::adopt(const SumTree& written) {
  std::copy_n(written.leaves_.data(), size_, leaves_.data());  // copied: views of our leaves stay valid
  forget_parked();
  set_max(written.max_bits_);
}

Status SumTree::fill(const float* priorities) {
  const uint32_t before = std::exchange(max_bits_, 0);
  const Status status = write(0, priorities, size_);
  if (!status.ok()) {
    max_bits_ = before;
    return status;
  }
  forget_parked();
  set_max(max_bits_);
  return {};
}

Status SumTree::fill(float priority) {
  const uint32_t bits = priority_bits(priority);
  if (bits >= kInfinityBits) return {Status::kBadPriority, 0};
  std::fill_n(leaves_.data(), size_, std::bit_cast<float>(bits));
  forget_parked();
  set_max(bits);
  return {};
}

void SumTree::set_max(uint32_t bits) {
  max_bits_ = bits;
  if (fixed_scale_ == kFreeScale) scale_ = scale_of(bits);
  rebuild();
}

void SumTree::refit() {
  uint32_t max_bits = 0;
  for (uint64_t i = 0; i < size_; ++i) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(leaves_[i]));
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
  uint32_t max_bits = 0;
  for (uint64_t c = 0; c < kFanout; ++c)
    max_bits = std::max(max_bits, std::bit_cast<uint32_t>(leaves_[i * kFanout + c]));
  if (max_bits == 0 || scale_of(max_bits) - scale_ >= least)
    for (uint64_t j = 0; j < size_; ++j) max_bits = std::max(max_bits, std::bit_cast<uint32_t>(leaves_[j]));
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
  kernels_of(current_isa).descend(view(), r, count, indices, masses, rests);
}

SumTree::Leaf SumTree::find_one(uint64_t r) const {
  int64_t index;
  uint32_t mass;
  uint64_t rest;
  descend(&r, 1, &index, &mass, &rest);
  return {uint64_t(index), rest, mass};
}

Status SumTree::find(const uint64_t* masses, size_t count, int64_t* indices) const {
  for (size_t j = 0; j < count; ++j)
    if (masses[j] >= total_) return {total_ ? Status::kMassOutOfRange : Status::kEmpty, j};
  uint32_t leaf_masses[256];
  uint64_t rests[256];
  for (size_t first = 0; first < count; first += 256)
    descend(masses + first, std::min<size_t>(256, count - first), indices + first, leaf_masses, rests);
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
    kernels_of(current_isa).words(stream, begin, count, r);
    for (size_t j = 0; j < count; ++j) r[j] = uniform(begin + j, r[j]);
    if (request.scheme != Scheme::kStratified) return;
  }
  // Number k of a group of B looks up floor((k * total + u) / B), k coming in the group's keyed order. With
  // total = q * B + rem that is k * q + (k * rem + u) / B, where nothing exceeds 64 bits: rem < B <= 2^31.
  const uint64_t b = request.group, q = total_ / b, rem = total_ % b;
  const Stream order_stream{request.seed, request.epoch, Purpose::kStratum};
  std::vector<uint64_t> words(b);
  std::vector<uint32_t> order(b);
  for (uint64_t j = 0; j < count;) {
    const uint64_t group = (begin + j) / b, place = (begin + j) % b, n = std::min<uint64_t>(b - place, count - j);
    kernels_of(current_isa).words(order_stream, group * b, b, words.data());
    shuffle(order_stream, group * b, words.data(), uint32_t(b), order.data());
    const uint64_t shared =
        request.scheme == Scheme::kSystematic ? uniform(group * b, word(stream, group * b, 0)) : 0;
    for (uint64_t m = 0; m < n; ++m) {
      const uint64_t k = order[place + m], u = request.scheme == Scheme::kSystematic ? shared : r[j + m];
      r[j + m] = k * q + (k * rem + u) / b;
    }
    j += n;
  }
}

Status SumTree::sample(const Request& request, int64_t* indices, double* probabilities) {
  if (request.count == 0) return {};
  if (request.scheme == Scheme::kEpoch) return sample_epoch(request, indices, probabilities);
  if (total_ == 0) return {Status::kEmpty, 0};
  if (request.scheme == Scheme::kUnique) return sample_unique(request, indices, probabilities);
  uint64_t* r = reinterpret_cast<uint64_t*>(indices);  // the targets are replaced by the leaves, in place
  targets(request, 0, request.count, r);
  const double total = double(total_);
  uint64_t chunk[256], rests[256];
  uint32_t masses[256];
  for (uint64_t first = 0; first < request.count; first += 256) {
    const size_t n = std::min<uint64_t>(256, request.count - first);
    std::copy_n(r + first, n, chunk);
    descend(chunk, n, indices + first, masses, rests);
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
  if (request.offset % b != 0) return {Status::kGroupSplit, 0};
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
