// csrc/avx512.h: the steps of loops.h in AVX-512. Not a header of its own: see kernels.cpp.

// A block's masses: 16 numbers of 32 bits.
using Masses = __m512i;

inline Masses load(const uint32_t* masses) { return _mm512_loadu_si512(masses); }
inline void store(const Masses& masses, uint32_t* to) { _mm512_storeu_si512(to, masses); }
inline Masses without(const Masses& masses, uint32_t parked) {
  return _mm512_maskz_mov_epi32(_cvtu32_mask16(~parked), masses);
}

// Half to even: the rounding is in the instructions' encoding.
inline Masses common_masses(const float* leaves, int scale) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512 p = _mm512_loadu_ps(leaves);
  const __m512 scaled = _mm512_mul_round_ps(p, _mm512_set1_ps(common_factor(scale)), kNearest);
  const __mmask16 some = _mm512_test_epi32_mask(_mm512_castps_si512(p), _mm512_castps_si512(p));
  return _mm512_maskz_max_epi32(some, _mm512_cvt_roundps_epi32(scaled, kNearest), _mm512_set1_epi32(1));
}

inline uint64_t sum(const Masses& masses) {
  const __m512i low = _mm512_and_si512(masses, _mm512_set1_epi64(0xFFFFFFFF));
  return uint64_t(_mm512_reduce_add_epi64(_mm512_add_epi64(low, _mm512_srli_epi64(masses, 32))));
}

inline uint64_t pick_child(const uint64_t* node, uint64_t& r) {
  const __m512i v = _mm512_set1_epi64(int64_t(r));
  const __mmask8 low = _mm512_cmple_epu64_mask(_mm512_load_si512(node), v);
  const __mmask8 high = _mm512_cmple_epu64_mask(_mm512_load_si512(node + 8), v);
  const uint64_t child = uint64_t(__builtin_popcount(_cvtmask16_u32(_mm512_kunpackb(high, low)))) - 1;
  r -= node[child];
  return child;
}

// Neighbours are added first: then eight sums of pairs are to be added up, not sixteen numbers of twice the width.
inline uint64_t pick_leaf(const Masses& masses, uint64_t r) {
  const __m512i zero = _mm512_setzero_si512(), odd = _mm512_srli_epi64(masses, 32);
  __m512i up_to_odd = _mm512_add_epi64(_mm512_and_si512(masses, _mm512_set1_epi64(0xFFFFFFFF)), odd);
  up_to_odd = _mm512_add_epi64(up_to_odd, _mm512_alignr_epi64(up_to_odd, zero, 7));
  up_to_odd = _mm512_add_epi64(up_to_odd, _mm512_alignr_epi64(up_to_odd, zero, 6));
  up_to_odd = _mm512_add_epi64(up_to_odd, _mm512_alignr_epi64(up_to_odd, zero, 4));
  const __m512i v = _mm512_set1_epi64(int64_t(r));
  const __mmask8 odds = _mm512_cmple_epu64_mask(up_to_odd, v);
  const __mmask8 evens = _mm512_cmple_epu64_mask(_mm512_sub_epi64(up_to_odd, odd), v);
  return uint64_t(__builtin_popcount(_cvtmask16_u32(_mm512_kunpackb(odds, evens))));
}

inline void add_after(uint64_t* node, uint64_t child, uint64_t delta) {
  const __m512i d = _mm512_set1_epi64(int64_t(delta)), low = _mm512_load_si512(node),
                high = _mm512_load_si512(node + 8);
  const uint32_t after = 0xFFFEu << child;
  _mm512_store_si512(node, _mm512_mask_add_epi64(low, __mmask8(after), low, d));
  _mm512_store_si512(node + 8, _mm512_mask_add_epi64(high, __mmask8(after >> 8), high, d));
}

// A block to a lane of 64 bits, eight to a vector, four vectors side by side to hide the multiplication's latency. It
// reads the low half of a lane, so what sums and exclusive ors leave in the high half does no harm.
constexpr int kGroups = 4;
constexpr size_t kBlocks = 8 * kGroups;
inline void words_of_blocks(const Stream& stream, uint64_t number, uint64_t* out) {
  __m512i c0[kGroups], c1[kGroups], c2[kGroups], c3[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    const __m512i first = _mm512_set1_epi64(int64_t(number) + 8 * g);
    c0[g] = _mm512_add_epi64(first, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    c1[g] = _mm512_srli_epi64(c0[g], 32);
    c2[g] = _mm512_set1_epi64(stream.epoch);
    c3[g] = _mm512_set1_epi64(int64_t(stream.purpose) << 24);
  }
  __m512i k0 = _mm512_set1_epi64(int64_t(stream.seed)), k1 = _mm512_set1_epi64(int64_t(stream.seed >> 32));
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < kGroups; ++g) {
      const __m512i a = _mm512_mul_epu32(c0[g], _mm512_set1_epi64(0xD2511F53));
      const __m512i b = _mm512_mul_epu32(c2[g], _mm512_set1_epi64(0xCD9E8D57));
      c0[g] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(b, 32), c1[g]), k0);
      c2[g] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(a, 32), c3[g]), k1);
      c1[g] = b;
      c3[g] = a;
    }
    k0 = _mm512_add_epi64(k0, _mm512_set1_epi64(0x9E3779B9));
    k1 = _mm512_add_epi64(k1, _mm512_set1_epi64(0xBB67AE85));
  }
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
  for (int g = 0; g < kGroups; ++g, out += 16) {
    const __m512i even = _mm512_mask_mov_epi32(c0[g], 0xAAAA, _mm512_slli_epi64(c1[g], 32));
    const __m512i odd = _mm512_mask_mov_epi32(c2[g], 0xAAAA, _mm512_slli_epi64(c3[g], 32));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(even, low, odd));
    _mm512_storeu_si512(out + 8, _mm512_permutex2var_epi64(even, high, odd));
  }
}
