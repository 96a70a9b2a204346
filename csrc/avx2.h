// csrc/avx2.h: the steps of loops.h in AVX2. Not a header of its own: see kernels.cpp.

struct Masses {
  __m256i low, high;
};

inline __m256i load4(const uint64_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store4(uint64_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

inline Masses load(const uint32_t* masses) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(masses)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masses + 8))};
}
inline void store(const Masses& masses, uint32_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), masses.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), masses.high);
}

inline __m256i without(__m256i masses, uint32_t parked) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i here = _mm256_and_si256(_mm256_set1_epi32(int(parked)), bits);
  return _mm256_and_si256(masses, _mm256_cmpeq_epi32(here, _mm256_setzero_si256()));
}
inline Masses without(const Masses& masses, uint32_t parked) {
  return {without(masses.low, parked), without(masses.high, parked >> 8)};
}

// _mm256_round_ps has the rounding, half to even, in its encoding.
inline __m256i common_masses(__m256 p, __m256 factor) {
  const __m256 rounded = _mm256_round_ps(_mm256_mul_ps(p, factor), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i none = _mm256_cmpeq_epi32(_mm256_castps_si256(p), _mm256_setzero_si256());
  return _mm256_andnot_si256(none, _mm256_max_epi32(_mm256_cvtps_epi32(rounded), _mm256_set1_epi32(1)));
}
inline Masses common_masses(const float* leaves, int scale) {
  const __m256 factor = _mm256_set1_ps(common_factor(scale));
  return {common_masses(_mm256_loadu_ps(leaves), factor), common_masses(_mm256_loadu_ps(leaves + 8), factor)};
}

inline __m256i pairs(__m256i masses) {
  return _mm256_add_epi64(_mm256_and_si256(masses, _mm256_set1_epi64x(0xFFFFFFFF)), _mm256_srli_epi64(masses, 32));
}

inline uint64_t sum(const Masses& masses) {
  const __m256i four = _mm256_add_epi64(pairs(masses.low), pairs(masses.high));
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  return uint64_t(_mm_cvtsi128_si64(two)) + uint64_t(_mm_extract_epi64(two, 1));
}

// How many of sixteen sums are above r. They are below 2^63, so that comparing them as signed numbers is right.
inline uint64_t count_above(__m256i a, __m256i b, __m256i c, __m256i d, uint64_t r) {
  const __m256i v = _mm256_set1_epi64x(int64_t(r));
  const __m256i ab = _mm256_packs_epi32(_mm256_cmpgt_epi64(a, v), _mm256_cmpgt_epi64(b, v));
  const __m256i cd = _mm256_packs_epi32(_mm256_cmpgt_epi64(c, v), _mm256_cmpgt_epi64(d, v));
  return uint64_t(__builtin_popcount(uint32_t(_mm256_movemask_epi8(_mm256_packs_epi16(ab, cd))))) / 2;
}

inline uint64_t pick_child(const uint64_t* node, uint64_t& r) {
  const uint64_t child = 15 - count_above(load4(node), load4(node + 4), load4(node + 8), load4(node + 12), r);
  r -= node[child];
  return child;
}

inline __m256i add_up(__m256i x) {
  x = _mm256_add_epi64(x, _mm256_slli_si256(x, 8));
  const __m256i low = _mm256_permute2x128_si256(x, x, 0x08);  // the low half in the high one's place
  return _mm256_add_epi64(x, _mm256_unpackhi_epi64(low, low));
}

// Neighbours are added first, as in avx512.h.
inline uint64_t pick_leaf(const Masses& masses, uint64_t r) {
  const __m256i low = add_up(pairs(masses.low));
  const __m256i high = _mm256_add_epi64(add_up(pairs(masses.high)), _mm256_permute4x64_epi64(low, 0xFF));
  const __m256i low_even = _mm256_sub_epi64(low, _mm256_srli_epi64(masses.low, 32));
  const __m256i high_even = _mm256_sub_epi64(high, _mm256_srli_epi64(masses.high, 32));
  return 16 - count_above(low, low_even, high, high_even, r);
}

inline void add_after(uint64_t* node, uint64_t child, uint64_t delta) {
  const __m256i d = _mm256_set1_epi64x(int64_t(delta));
  for (int v = 0; v < kFanout; v += 4)
    store4(node + v, _mm256_add_epi64(load4(node + v), _mm256_and_si256(load4(kAfter[child].data() + v), d)));
}

// As in avx512.h, four blocks to a vector, and as many vectors as there are registers for.
constexpr int kGroups = 2;
constexpr size_t kBlocks = 4 * kGroups;
inline void words_of_blocks(const Stream& stream, uint64_t number, uint64_t* out) {
  __m256i c0[kGroups], c1[kGroups], c2[kGroups], c3[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    c0[g] = _mm256_add_epi64(_mm256_set1_epi64x(int64_t(number) + 4 * g), _mm256_setr_epi64x(0, 1, 2, 3));
    c1[g] = _mm256_srli_epi64(c0[g], 32);
    c2[g] = _mm256_set1_epi64x(stream.epoch);
    c3[g] = _mm256_set1_epi64x(int64_t(stream.purpose) << 24);
  }
  __m256i k0 = _mm256_set1_epi64x(int64_t(stream.seed)), k1 = _mm256_set1_epi64x(int64_t(stream.seed >> 32));
  for (int round = 0; round < 10; ++round) {
    for (int g = 0; g < kGroups; ++g) {
      const __m256i a = _mm256_mul_epu32(c0[g], _mm256_set1_epi64x(0xD2511F53));
      const __m256i b = _mm256_mul_epu32(c2[g], _mm256_set1_epi64x(0xCD9E8D57));
      c0[g] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(b, 32), c1[g]), k0);
      c2[g] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a, 32), c3[g]), k1);
      c1[g] = b;
      c3[g] = a;
    }
    k0 = _mm256_add_epi64(k0, _mm256_set1_epi64x(0x9E3779B9));
    k1 = _mm256_add_epi64(k1, _mm256_set1_epi64x(0xBB67AE85));
  }
  for (int g = 0; g < kGroups; ++g, out += 8) {
    const __m256i even = _mm256_blend_epi32(c0[g], _mm256_slli_epi64(c1[g], 32), 0xAA);
    const __m256i odd = _mm256_blend_epi32(c2[g], _mm256_slli_epi64(c3[g], 32), 0xAA);
    const __m256i low = _mm256_unpacklo_epi64(even, odd), high = _mm256_unpackhi_epi64(even, odd);
    store4(out, _mm256_permute2x128_si256(low, high, 0x20));
    store4(out + 4, _mm256_permute2x128_si256(low, high, 0x31));
  }
}
