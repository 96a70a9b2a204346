// tests/cpp/philox.cpp: the published known answers, and every way to read words gives the same ones.
#include "philox.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"

using namespace fastprio;

int main() {
  std::ifstream file("../data/philox4x32.txt");
  int answers = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    uint32_t w[10];
    for (uint32_t& x : w) words >> std::hex >> x;
    CHECK(!words.fail());
    CHECK((philox4x32({w[0], w[1], w[2], w[3]}, {w[4], w[5]}) == Block{w[6], w[7], w[8], w[9]}));
    ++answers;
  }
  CHECK(answers == 3);

  Random random{1};
  for (int k = 0; k < 2000; ++k) {
    const Stream stream{random(), uint32_t(random()), Purpose(random.below(6))};
    uint64_t first = random() >> random.below(64);
    if (k % 3 == 0) first = (uint64_t{1} << 33) - random.below(80);  // where the block number passes 2^32
    std::vector<uint64_t> out(random.below(150));
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_available(isa)) continue;
      use_isa(isa);
      std::fill(out.begin(), out.end(), 0);
      kernels().words(stream, first, out.size(), out.data());
      for (size_t j = 0; j < out.size(); ++j) CHECK(out[j] == word(stream, first + j, 0));
    }
    const uint32_t attempt = uint32_t(random.below(1 << 24));
    Words words(stream, first, attempt);
    CHECK(words() == word(stream, first, attempt));
    CHECK(words() == word(stream, first, attempt + 1));
  }

  // Purpose, attempt, epoch and seed are where philox.h says, so that no two uses share a counter.
  const Block b = philox4x32({5, 6, 7, 4u << 24 | 9}, {0x89ABCDEF, 0x01234567});
  const Stream stream{0x0123456789ABCDEF, 7, Purpose::kRedraw};
  CHECK(word(stream, uint64_t{6} << 33 | 10, 9) == (b[0] | uint64_t{b[1]} << 32));
  CHECK(word(stream, uint64_t{6} << 33 | 11, 9) == (b[2] | uint64_t{b[3]} << 32));
  return done("philox");
}
