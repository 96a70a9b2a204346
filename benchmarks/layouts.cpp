// benchmarks/layouts.cpp: what other shapes of the tree would cost. An experiment beside the real code of csrc/, from
// which it takes the masses and the memory; in the end every shape must find the same leaves. Needs AVX-512. From the
// repository:
//
//   g++ -std=c++20 -O3 -march=native -fno-strict-aliasing -Icsrc benchmarks/layouts.cpp -o layouts
//   ./layouts [sizes, by default 1e6 1e7 1e8; 1e9 takes 14 GB]
//
// ns an index, one thread, batches of 256, fresh uniform random indices in each call; the median of
// alternating turns, which are short, so that a busy machine spoils few.
#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "lines.h"
#include "mass.h"
#include "timing.h"

using namespace fastprio;

constexpr int kTurns = 41, kCalls = 40, kBatch = 256, kScale = 27;
const float kFactor = common_factor(kScale);

struct Tree {
  virtual ~Tree() = default;
  virtual void find(const uint64_t* r, uint64_t* leaf) const = 0;      // kBatch of them
  virtual void update(const uint64_t* at, const float* priority) = 0;  // kBatch of them
};

inline __m512i up_to(__m512i x) {  // the sums of the first 1, 2, ... 8 numbers
  const __m512i zero = _mm512_setzero_si512();
  x = _mm512_add_epi64(x, _mm512_alignr_epi64(x, zero, 7));
  x = _mm512_add_epi64(x, _mm512_alignr_epi64(x, zero, 6));
  return _mm512_add_epi64(x, _mm512_alignr_epi64(x, zero, 4));
}
inline uint64_t not_above(__m512i x, __m512i r) { return __builtin_popcount(_mm512_cmple_epu64_mask(x, r)); }
inline __m512i last(__m512i x) { return _mm512_permutexvar_epi64(_mm512_set1_epi64(7), x); }

// kFanout children to a node, kBlock leaves to a block; a node holds the sums before its children, or (plain) the
// children's own sums; kGroup searches go down together.
template <uint64_t kFanout, uint64_t kBlock, bool kPrefix, int kGroup>
class Shape : public Tree {
 public:
  Shape(float* leaves, uint64_t size, bool huge) : leaves_(leaves) {
    std::vector<uint64_t> sums(size / kBlock + 1);
    for (uint64_t i = 0; i < size; ++i) sums[i / kBlock] += common_mass(leaves[i], kFactor);
    do {
      const uint64_t nodes = (sums.size() + kFanout - 1) / kFanout;
      Lines<uint64_t> level(nodes * kFanout);
      if (!huge && level.size() * 8 >= 2 << 20) madvise(level.data(), level.size() * 8, MADV_NOHUGEPAGE);
      std::vector<uint64_t> above(nodes);
      for (uint64_t c = 0; c < level.size(); ++c) {
        const uint64_t sum = c < sums.size() ? sums[c] : 0;
        level[c] = kPrefix ? above[c / kFanout] : sum;
        above[c / kFanout] += sum;
      }
      levels_.push_back(std::move(level));
      sums = std::move(above);
    } while (sums.size() > 1);
  }

  void find(const uint64_t* r, uint64_t* leaf) const override {
    for (int first = 0; first < kBatch; first += kGroup) {
      uint64_t at[kGroup] = {}, rest[kGroup];
      std::copy_n(r + first, kGroup, rest);
      for (size_t k = levels_.size(); k-- > 0;)
        for (int q = 0; q < kGroup; ++q) {
          at[q] += pick_child(levels_[k].data() + at[q], rest[q]);
          at[q] *= k > 0 ? kFanout : kBlock;
          const char* below = k > 0 ? (const char*)(levels_[k - 1].data() + at[q]) : (const char*)(leaves_ + at[q]);
          for (size_t byte = 0; byte < (k > 0 ? kFanout * 8 : kBlock * 4); byte += 64) __builtin_prefetch(below + byte);
        }
      for (int q = 0; q < kGroup; ++q) leaf[first + q] = at[q] + pick_leaf(leaves_ + at[q], rest[q]);
    }
  }

  void update(const uint64_t* at, const float* priority) override {
    uint64_t deltas[kBatch];
    constexpr int kAhead = 64;
    for (int j = -kAhead; j < kBatch; ++j) {
      if (j + kAhead < kBatch) {
        const uint64_t i = at[j + kAhead], entry = i / kBlock;
        __builtin_prefetch(leaves_ + i, 1);
        if (kPrefix)
          for (uint64_t c = 0; c < kFanout; c += 8)
            __builtin_prefetch(levels_[0].data() + entry / kFanout * kFanout + c, 1);
        else
          __builtin_prefetch(levels_[0].data() + entry, 1);
      }
      if (j < 0) continue;
      deltas[j] = uint64_t{common_mass(priority[j], kFactor)} - common_mass(leaves_[at[j]], kFactor);
      leaves_[at[j]] = priority[j];
    }
    uint64_t below = kBlock;
    for (auto& level : levels_) {
      for (int j = 0; j < kBatch; ++j) {
        const uint64_t entry = at[j] / below;
        if (kPrefix)
          add_after(level.data() + entry / kFanout * kFanout, entry % kFanout, deltas[j]);
        else
          level[entry] += deltas[j];
      }
      below *= kFanout;
    }
  }

 private:
  static uint64_t pick_child(const uint64_t* node, uint64_t& r) {
    const __m512i v = _mm512_set1_epi64(int64_t(r));
    uint64_t child = 0;
    if (kPrefix) {
      for (uint64_t c = 0; c < kFanout; c += 8) child += not_above(_mm512_load_si512(node + c), v);
      r -= node[--child];
      return child;
    }
    alignas(64) uint64_t before[kFanout];
    __m512i sum = _mm512_setzero_si512();
    for (uint64_t c = 0; c < kFanout; c += 8) {
      const __m512i own = _mm512_load_si512(node + c);
      sum = _mm512_add_epi64(up_to(own), last(sum));
      _mm512_store_si512(before + c, _mm512_sub_epi64(sum, own));
      child += not_above(sum, v);
    }
    r -= before[child];
    return child;
  }

  static uint64_t pick_leaf(const float* leaves, uint64_t r) {
    const __m512i v = _mm512_set1_epi64(int64_t(r)), low = _mm512_set1_epi64(0xFFFFFFFF);
    alignas(64) uint32_t masses[kBlock];
    for (uint64_t c = 0; c < kBlock; ++c) masses[c] = common_mass(leaves[c], kFactor);
    __m512i sum = _mm512_setzero_si512();
    uint64_t child = 0;
    for (uint64_t c = 0; c < kBlock; c += 16) {
      const __m512i m = _mm512_load_si512(masses + c), odd = _mm512_srli_epi64(m, 32);
      sum = _mm512_add_epi64(up_to(_mm512_add_epi64(_mm512_and_si512(m, low), odd)), last(sum));
      child += not_above(sum, v) + not_above(_mm512_sub_epi64(sum, odd), v);
    }
    return child;
  }

  static void add_after(uint64_t* node, uint64_t child, uint64_t delta) {
    const __m512i v = _mm512_set1_epi64(int64_t(delta));
    const uint64_t after = child == 63 ? 0 : ~uint64_t{0} << (child + 1);
    for (uint64_t c = 0; c < kFanout; c += 8) {
      const __m512i sums = _mm512_load_si512(node + c);
      _mm512_store_si512(node + c, _mm512_mask_add_epi64(sums, __mmask8(after >> c), sums, v));
    }
  }

  float* leaves_;
  std::vector<Lines<uint64_t>> levels_;
};

struct Row {
  const char* name;
  std::unique_ptr<Tree> (*make)(float*, uint64_t);
  bool huge = true;
};

template <uint64_t kFanout, uint64_t kBlock, bool kPrefix, int kGroup, bool kHuge = true>
std::unique_ptr<Tree> make(float* leaves, uint64_t size) {
  return std::make_unique<Shape<kFanout, kBlock, kPrefix, kGroup>>(leaves, size, kHuge);
}

const Row kRows[] = {{"fan-out 16, blocks of 16, prefix sums, 128 together, huge pages", make<16, 16, true, 128>},
                     {"16 together", make<16, 16, true, 16>},
                     {"32 together", make<16, 16, true, 32>},
                     {"64 together", make<16, 16, true, 64>},
                     {"256 together", make<16, 16, true, 256>},
                     {"fan-out 8", make<8, 16, true, 128>},
                     {"fan-out 32", make<32, 16, true, 128>},
                     {"fan-out 64", make<64, 16, true, 128>},
                     {"blocks of 32", make<16, 32, true, 128>},
                     {"blocks of 64", make<16, 64, true, 128>},
                     {"plain sums", make<16, 16, false, 128>},
                     {"plain sums, fan-out 8", make<8, 16, false, 128>},
                     {"plain sums, fan-out 8, blocks of 32", make<8, 32, false, 128>},
                     {"no huge pages", make<16, 16, true, 128, false>, false}};

int main(int argc, char** argv) {
  std::vector<double> sizes;
  for (int a = 1; a < argc; ++a) sizes.push_back(std::stod(argv[a]));
  if (sizes.empty()) sizes = {1e6, 1e7, 1e8};
  for (const double wish : sizes) {
    const uint64_t size = uint64_t(wish) / 64 * 64;
    Random random{1};
    Lines<float> leaves(size), small_pages(size);
    madvise(small_pages.data(), size * 4, MADV_NOHUGEPAGE);
    uint64_t total = 0;
    for (uint64_t i = 0; i < size; ++i) total += common_mass(small_pages[i] = leaves[i] = random.uniform(), kFactor);
    std::vector<std::unique_ptr<Tree>> trees;
    for (const Row& row : kRows) trees.push_back(row.make(row.huge ? leaves.data() : small_pages.data(), size));
    std::vector<double> reads, finds[std::size(kRows)], updates[std::size(kRows)];
    constexpr int kAll = kCalls * kBatch;
    std::vector<uint64_t> at(kAll), r(kAll), found(kAll), expected;
    std::vector<float> fresh(kAll), old(kAll);
    for (int turn = 0; turn < kTurns; ++turn)
      for (size_t t = 0; t < trees.size(); ++t) {
        for (int j = 0; j < kAll; ++j) {  // fresh places for each, or the last shape's lines would still be near
          at[j] = random.below(size);
          r[j] = random.below(total);
        }
        float sum = 0;
        reads.push_back(nanoseconds([&] {
          for (int j = 0; j < kAll; ++j) sum += leaves[at[j]];
        }));
        if (sum < 0) return 1;
        finds[t].push_back(nanoseconds([&] {
          for (int j = 0; j < kAll; j += kBatch) trees[t]->find(&r[j], &found[j]);
        }));
        for (int j = 0; j < kAll; ++j) at[j] = random.below(size), fresh[j] = random.uniform(), old[j] = leaves[at[j]];
        updates[t].push_back(nanoseconds([&] {
          for (int j = 0; j < kAll; j += kBatch) trees[t]->update(&at[j], &fresh[j]);
        }));
        for (int j = 0; j < kAll; j += kBatch) trees[t]->update(&at[j], &old[j]);  // the leaves are shared
      }
    for (size_t t = 0; t < trees.size(); ++t) {  // after all those updates
      for (int j = 0; j < kAll; j += kBatch) trees[t]->find(&r[j], &found[j]);
      if (t == 0) expected = found;
      if (found != expected) return std::printf("%s finds other leaves\n", kRows[t].name), 1;
    }
    std::printf("| N = %.0e, a bare random read %.1f | find | update |\n|---|---|---|\n", wish, median(reads) / kAll);
    for (size_t t = 0; t < trees.size(); ++t)
      std::printf("| %s | %.1f | %.1f |\n", kRows[t].name, median(finds[t]) / kAll, median(updates[t]) / kAll);
  }
}
