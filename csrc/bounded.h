// csrc/bounded.h: an unbiased integer in [0, bound) from random words.
//
// Lemire, "Fast random integer generation in an interval" (ACM TOMACS 2019): the high half of
// word * bound, after rejecting the few words that would make some results likelier than others. Exactly
// (2^w - 2^w mod bound) of the 2^w words are accepted, equally many for each result. The template is
// instantiated at 8 bits by the tests, which then try every bound and every word.
#pragma once

#include <cstdint>

namespace fastprio {

template <class Word>
struct Wide;
template <>
struct Wide<uint8_t> {
  using type = uint16_t;
};
template <>
struct Wide<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wide<uint64_t> {
  using type = unsigned __int128;
};

// bound is in [1, 2^w). `word` is the first random word, `next` yields further ones; fewer than one
// further word is needed on average, and practically none when bound is far below 2^w.
template <class Word, class Next>
inline Word bounded(Word bound, Word word, Next&& next) {
  using W = typename Wide<Word>::type;
  constexpr int kBits = 8 * sizeof(Word);
  W product = W(word) * bound;
  if (Word(product) < bound) [[unlikely]] {
    const Word threshold = Word(Word(0) - bound) % bound;  // 2^w mod bound
    while (Word(product) < threshold) product = W(next()) * bound;
  }
  return Word(product >> kBits);
}

}  // namespace fastprio
