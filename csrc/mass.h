// csrc/mass.h: the integer mass of a float32 priority.
//
// mass(p) = 0 if p is 0, else p * 2^scale rounded half to even and clamped to [1, 2^31 - 1]. It is
// computed from the float's bits by integer shifts, or by operations that are exact, so flush-to-zero,
// the rounding mode and the SIMD path cannot change it. A priority above zero never has mass zero. Monotone: p <= q
// implies mass(p) <= mass(q).
//
// The scale is a power of two chosen from the largest priority M, so that the largest mass lies in
// [2^27, 2^31): priorities down to M * 2^-4 keep all their 24 bits, and those that would round to less
// than one (below M * 2^-28 at most) count as mass 1.
#pragma once

#include <bit>
#include <cstdint>

namespace fastprio {

constexpr uint32_t kMaxMass = 0x7FFFFFFF;
constexpr uint32_t kInfinityBits = 0x7F800000;
constexpr uint32_t kNegativeZeroBits = 0x80000000;

// The bits of a priority, with -0.0 taken as 0.0. Valid iff the result is below kInfinityBits: negative
// numbers have the sign bit set, and infinities and NaNs come at kInfinityBits or above.
inline uint32_t priority_bits(float priority) {
  const uint32_t bits = std::bit_cast<uint32_t>(priority);
  return bits == kNegativeZeroBits ? 0 : bits;
}

// `bits` are those of a valid priority, scale is in [-97, 179]. Free of branches, so that a loop over a
// block of leaves becomes vector code.
inline uint32_t mass(uint32_t bits, int scale) {
  const uint32_t exponent = bits >> 23;
  const uint32_t significand = exponent ? (bits & 0x7FFFFF) | 0x800000 : bits;
  const int shift = int(exponent ? exponent : 1) - 150 + scale;  // p * 2^scale = significand * 2^shift
  // What would not fit is clamped. That happens only under a scale chosen for a smaller priority, in tests; but
  // a subnormal's short significand may rightly move up by more than the seven places that others have.
  const int up = shift < 0 ? 0 : shift > 31 ? 31 : shift;
  const uint32_t left = significand > (kMaxMass >> up) ? kMaxMass : significand << up;
  const int places = shift >= 0 ? 1 : shift < -26 ? 26 : -shift;
  const uint32_t half = uint32_t{1} << (places - 1), odd = (significand >> places) & 1;
  const uint32_t right = (significand + (half - 1) + odd) >> places;
  const uint32_t rounded = shift >= 0 ? left : right;
  const uint32_t least = significand ? 1 : 0;
  return significand ? (rounded > least ? rounded : least) : 0;
}

// The same by the floating-point unit, several times faster, for a priority that is at most the M that its scale was
// chosen from, and a scale of at most kCommonScale, that is, M >= 2^-96. No mode of that unit changes the result,
// because each operation is exact, with one exception that does not matter: a product below 2^-126, which may be
// rounded or flushed to zero, is below one half either way, and so is that of a subnormal priority.
constexpr int kCommonScale = 125;
inline float common_factor(int scale) { return std::bit_cast<float>(uint32_t(127 + scale) << 23); }  // 2^scale
inline uint32_t common_mass(float priority, float factor) {
  const float scaled = priority * factor;
  const int32_t whole = int32_t(scaled);
  const int32_t rest = std::bit_cast<int32_t>(scaled - float(whole)), half = 0x3F000000;  // bits compare as floats do
  const int32_t rounded = whole + (rest + (whole & 1) > half);                            // a half goes up from odd
  return uint32_t(rounded) | ((rounded == 0) & (std::bit_cast<uint32_t>(priority) != 0));
}

// floor(log2(M) / 4) for the largest priority M, given its bits. Scales change only when this does, so
// that a slowly growing maximum rarely asks for a rebuild. M = 0 counts as M = 1.
inline int scale_group(uint32_t max_bits) {
  if (max_bits == 0) return 0;
  const int exponent = int(max_bits >> 23);
  const int log2 = exponent ? exponent - 127 : std::bit_width(max_bits) - 150;
  return log2 >> 2;  // arithmetic shift: floor, also below zero
}

// The scale under which a priority of that group has a mass in [2^27, 2^31).
inline int scale_of(uint32_t max_bits) { return 27 - 4 * scale_group(max_bits); }

}  // namespace fastprio
