// tests/cpp/bounded.cpp: at 8 bits, every bound and every word: each result comes from equally many words.
#include "bounded.h"

#include "check.h"

using fastprio::bounded;

int main() {
  for (int bound = 1; bound < 256; ++bound) {
    int counts[256] = {}, rejected = 0;
    for (int word = 0; word < 256; ++word) {
      bool asked = false;
      // A rejected word is followed by one that all bounds accept: with low half bound - 1 or above, hence 255.
      const uint8_t result = bounded<uint8_t>(uint8_t(bound), uint8_t(word), [&] {
        asked = true;
        return uint8_t(255);
      });
      CHECK(result < bound);
      if (asked)
        ++rejected;
      else
        ++counts[result];
    }
    CHECK(rejected == 256 % bound);
    for (int result = 0; result < bound; ++result) CHECK(counts[result] == 256 / bound);
  }
  // The control: without rejection, results are unequal for every bound that is not a power of two.
  for (int bound = 3; bound < 256; ++bound) {
    int counts[256] = {}, least = 256, most = 0;
    for (int word = 0; word < 256; ++word) ++counts[word * bound >> 8];
    for (int result = 0; result < bound; ++result) {
      least = counts[result] < least ? counts[result] : least;
      most = counts[result] > most ? counts[result] : most;
    }
    CHECK((least == most) == ((bound & (bound - 1)) == 0));
  }
  // Further words are asked for until one is accepted.
  int asked = 0;
  const uint64_t half = uint64_t{1} << 63;
  const uint64_t result = bounded<uint64_t>(half + 1, 0, [&] { return ++asked < 5 ? uint64_t{0} : ~uint64_t{0}; });
  CHECK(asked == 5);
  CHECK(result == half);
  return done("bounded");
}
