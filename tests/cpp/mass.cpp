// tests/cpp/mass.cpp: the mass of 4 million floats of all exponents at nine scales, against 128-bit arithmetic.
#include "mass.h"

#include <initializer_list>

#include "check.h"

using namespace fastprio;

// significand * 2^shift, half to even, in [1, 2^31 - 1].
static uint32_t by_definition(uint32_t bits, int scale) {
  if (bits == 0) return 0;
  const int exponent = bits < 0x800000 ? 1 : int(bits >> 23);
  const unsigned __int128 significand = bits < 0x800000 ? bits : (bits & 0x7FFFFF) | 0x800000;
  const int shift = exponent - 150 + scale;
  if (shift >= 31) return kMaxMass;
  unsigned __int128 twice = significand << 1 << (shift > 0 ? shift : 0);  // twice the result, so halves are integers
  bool more = false;                                                      // whether something nonzero was shifted out
  for (int places = shift < 0 ? -shift : 0; places > 0 && twice > 0; --places, twice >>= 1) more |= twice & 1;
  unsigned __int128 result = twice >> 1;
  if ((twice & 1) && (more || (result & 1))) ++result;
  return result < 1 ? 1 : result > kMaxMass ? kMaxMass : uint32_t(result);
}

static uint32_t common(uint32_t bits, int scale) {
  return common_mass(std::bit_cast<float>(bits), common_factor(scale));
}

int main() {
  constexpr int kScales[] = {-97, -40, 0, 27, 60, 100, 140, 160, 179};
  for (uint32_t bits = 0; bits < kInfinityBits; bits += 509)  // odd, so it visits all low bits: 4.2 million floats
    for (const int scale : kScales) CHECK(mass(bits, scale) == by_definition(bits, scale));
  for (uint32_t exponent = 0; exponent < 255; ++exponent)  // every exponent under every scale, at edges of rounding
    for (int scale = -97; scale <= 179; ++scale)
      for (int k = 0; k <= 23; ++k)
        for (const uint32_t low : {(1u << k) - 1, 1u << k, (1u << k) + 1, 3u << k})
          if (low < 1u << 23) CHECK(mass(exponent << 23 | low, scale) == by_definition(exponent << 23 | low, scale));

  for (uint32_t bits = 1, before = 0; bits < kInfinityBits; before = bits, bits += 65521) {
    const int scale = scale_of(bits);
    CHECK(scale >= -97 && scale <= 179);
    CHECK(mass(bits, scale) >= uint32_t{1} << 27);  // the largest priority's mass is in [2^27, 2^31)
    CHECK(mass(bits, scale) < kMaxMass);            // and is not clamped
    CHECK(scale <= scale_of(before ? before : 1));
    CHECK(mass(before, scale) <= mass(bits, scale));
  }
  // The faster form, wherever it may be used: every scale it knows, priorities up to the largest of the scale's group.
  for (uint32_t max_bits = 1; max_bits < kInfinityBits; max_bits += 0x800000 / 2 + 4093) {
    const int scale = scale_of(max_bits);
    if (scale > kCommonScale) continue;
    CHECK(common(max_bits, scale) == mass(max_bits, scale));
    for (uint32_t bits = 0; bits < max_bits; bits += 65521 + (bits >> 12))
      CHECK(common(bits, scale) == mass(bits, scale));
    for (uint32_t bits = max_bits; bits + 64 > max_bits && bits > 0; --bits)
      CHECK(common(bits, scale) == mass(bits, scale));
    for (int exponent = 0; exponent < int(max_bits >> 23); ++exponent)
      for (int k = 0; k <= 23; ++k)
        for (const uint32_t low : {(1u << k) - 1, 1u << k, (1u << k) + 1, 3u << k})
          if (low < 1u << 23)
            CHECK(common(uint32_t(exponent) << 23 | low, scale) == mass(uint32_t(exponent) << 23 | low, scale));
  }
  CHECK(scale_of(0) == scale_of(0x3F800000));
  CHECK(scale_of(1) == 179 && scale_of(kInfinityBits - 1) == -97);
  CHECK(priority_bits(-0.0f) == 0 && priority_bits(0.0f) == 0);
  for (const float bad : {-1.0f, -1e-45f, 1.0f / 0.0f, -1.0f / 0.0f, __builtin_nanf("")})
    CHECK(priority_bits(bad) >= kInfinityBits);
  return done("mass");
}
