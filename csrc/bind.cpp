// csrc/bind.cpp: the boundary to Python. Checks types and lengths, turns a Status into an exception,
// releases the GIL and calls. No logic lives here, and no locks (fastprio/tree.py has them).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdio>
#include <string>

#include "ints.h"
#include "permutation.h"
#include "sum_tree.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fastprio;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using In = Array<const T>;

template <class... Arrays>
void same_length(const Arrays&... arrays) {
  const size_t sizes[] = {arrays.size()...};
  for (const size_t size : sizes)
    if (size != sizes[0])
      throw nb::value_error(
          ("arrays of one length expected, got " + std::to_string(sizes[0]) + " and " + std::to_string(size)).c_str());
}

std::string number(float value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", double(value));
  return text;
}

std::string at(const char* name, uint64_t position) { return std::string(name) + "[" + std::to_string(position) + "]"; }

// What the caller sees of a Status. The arrays are those of the call, to name the offending value.
[[noreturn]] void raise(const SumTree& tree, const Status& s, const int64_t* indices, const float* priorities,
                        const uint64_t* masses = nullptr, uint64_t offset = 0) {
  const std::string where = std::to_string(s.position);
  switch (s.kind) {
    case Status::kIndexOutOfRange:
      throw nb::index_error((at("indices", s.position) + " = " + std::to_string(indices[s.position]) +
                             ": expected 0 <= index < " + std::to_string(tree.size()))
                                .c_str());
    case Status::kBadPriority:
      throw nb::value_error((at("priorities", s.position + offset) + " = " + number(priorities[s.position]) +
                             ": expected a finite number >= 0")
                                .c_str());
    case Status::kMassOutOfRange:
      throw nb::value_error((at("masses", s.position) + " = " + std::to_string(masses[s.position]) +
                             ": expected 0 <= mass < total = " + std::to_string(tree.total()))
                                .c_str());
    case Status::kEmpty:
      throw nb::value_error("nothing can be drawn: no priority is above zero");
    case Status::kExhausted:
      throw nb::value_error(("draw " + where +
                             " of this call finds nothing left: fewer examples with a priority "
                             "above zero than draws without replacement")
                                .c_str());
    case Status::kGroupSplit:
      throw nb::value_error(("offset = " + std::to_string(offset) +
                             ": scheme 'unique' draws whole groups, so it must be "
                             "a multiple of group")
                                .c_str());
    case Status::kNotNext: {
      std::string next = "0";
      if (tree.parked().active)
        next += ", or " + std::to_string(tree.parked().next) + " with seed " + std::to_string(tree.parked().seed) +
                " and epoch " + std::to_string(tree.parked().epoch);
      throw nb::value_error(
          ("offset = " + std::to_string(offset) + ": scheme 'epoch' goes on where it was; expected " + next).c_str());
    }
    case Status::kOk:
      break;
  }
  throw nb::value_error("unknown status");
}

void update(SumTree& tree, In<int64_t> indices, In<float> priorities) {
  same_length(indices, priorities);
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.update(indices.data(), priorities.data(), indices.size());
  }
  if (!s.ok()) raise(tree, s, indices.data(), priorities.data());
}

void fill(SumTree& tree, In<float> priorities) {
  if (priorities.size() != tree.size())
    throw nb::value_error(
        ("priorities: expected " + std::to_string(tree.size()) + " of them, got " + std::to_string(priorities.size()))
            .c_str());
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.fill(priorities.data());
  }
  if (!s.ok()) raise(tree, s, nullptr, priorities.data());
}

// The number comes as an array of one: a float argument would pass through a conversion that may flush it to zero.
void fill_scalar(SumTree& tree, In<float> priority) {
  if (priority.size() != 1) throw nb::value_error("priority: expected one");
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.fill(priority.data()[0]);
  }
  if (!s.ok()) raise(tree, s, nullptr, priority.data());
}

void write_leaves(SumTree& tree, uint64_t begin, In<float> priorities) {
  if (tree.total() != 0) throw nb::value_error("write: this tree has priorities already, and sums of them");
  if (begin > tree.size() || priorities.size() > tree.size() - begin)
    throw nb::value_error(("chunks: more than " + std::to_string(tree.size()) + " priorities").c_str());
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.write(begin, priorities.data(), priorities.size());
  }
  if (!s.ok()) raise(tree, s, nullptr, priorities.data(), nullptr, begin);
}

void adopt(SumTree& tree, SumTree& written) {
  if (tree.size() != written.size() || &tree == &written) throw nb::value_error("two trees of one size expected");
  nb::gil_scoped_release release;
  tree.adopt(written);
}

void gather(const SumTree& tree, In<int64_t> indices, Array<float> priorities) {
  same_length(indices, priorities);
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.gather(indices.data(), indices.size(), priorities.data());
  }
  if (!s.ok()) raise(tree, s, indices.data(), nullptr);
}

void find(const SumTree& tree, In<uint64_t> masses, Array<int64_t> indices) {
  same_length(masses, indices);
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.find(masses.data(), masses.size(), indices.data());
  }
  if (!s.ok()) raise(tree, s, nullptr, nullptr, masses.data());
}

void sample(SumTree& tree, uint64_t seed, uint32_t epoch, uint64_t offset, int scheme, uint64_t group,
            Array<int64_t> indices, Array<double> probabilities) {
  same_length(indices, probabilities);
  if (reinterpret_cast<uintptr_t>(indices.data()) <
          reinterpret_cast<uintptr_t>(probabilities.data() + indices.size()) &&
      reinterpret_cast<uintptr_t>(probabilities.data()) < reinterpret_cast<uintptr_t>(indices.data() + indices.size()))
    throw nb::value_error("out: expected two arrays that share no memory");
  if (scheme < int(Scheme::kIid) || scheme > int(Scheme::kEpoch))
    throw nb::value_error("scheme: expected one of SCHEMES");
  if (group < 1 || group > kMaxGroup)
    throw nb::value_error(("group = " + std::to_string(group) + ": expected 1 <= group <= 2^31").c_str());
  Status s;
  {
    nb::gil_scoped_release release;
    s = tree.sample({seed, epoch, offset, indices.size(), Scheme(scheme), group}, indices.data(), probabilities.data());
  }
  if (!s.ok()) raise(tree, s, nullptr, nullptr, nullptr, offset);
}

// indices[j] for j in [0, taken) = what the keyed permutation of [0, n) visits from `position` on, without what
// `skip` (a bit an example, or empty) has set. Returns (taken, the position to go on from).
std::pair<uint64_t, uint64_t> walk(uint64_t n, uint64_t seed, uint32_t epoch, Purpose purpose, uint64_t position,
                                   In<uint8_t> skip, Array<int64_t> indices) {
  if (n < 1 || n > kMaxSize) throw nb::value_error("n: expected 1 <= n <= 2^32");
  if (skip.size() && skip.size() < (n + 7) / 8) throw nb::value_error("skip: expected a bit for each example");
  nb::gil_scoped_release release;
  return walk_permutation(Permutation(n, {seed, epoch, purpose}), position, skip.size() ? skip.data() : nullptr,
                          indices.data(), indices.size());
}

void integers(uint64_t bound, uint64_t seed, uint32_t epoch, Purpose purpose, uint64_t first, Array<uint64_t> out) {
  if (bound < 1) throw nb::value_error("bound: expected bound >= 1");
  const Stream stream{seed, epoch, purpose};
  nb::gil_scoped_release release;
  for (size_t j = 0; j < out.size(); ++j) {
    Words words(stream, first + j);
    out.data()[j] = bounded<uint64_t>(bound, words(), words);
  }
}

}  // namespace

NB_MODULE(_core, m) {
#ifdef NDEBUG
  // Objects alive when the interpreter ends, such as an abandoned iterator's sampler, are not leaks of this module.
  nb::set_leak_warnings(false);
#endif
  m.doc() = "The C++ core of fastprio. Use fastprio.SumTree; the contracts are in csrc/sum_tree.h.";
  m.attr("MAX_SIZE") = kMaxSize;
  m.attr("MAX_THREADS") = kMostThreads;

  nb::dict schemes;  // plain numbers: an enumeration's member would be looked up in every call
  schemes["iid"] = int(Scheme::kIid);
  schemes["stratified"] = int(Scheme::kStratified);
  schemes["systematic"] = int(Scheme::kSystematic);
  schemes["unique"] = int(Scheme::kUnique);
  schemes["epoch"] = int(Scheme::kEpoch);
  m.attr("SCHEMES") = schemes;
  nb::enum_<Purpose>(m, "Purpose", "What random bits are used for; two purposes never share bits.")
      .value("draw", Purpose::kDraw)
      .value("stratum", Purpose::kStratum)
      .value("cover", Purpose::kCover)
      .value("plan", Purpose::kPlan)
      .value("redraw", Purpose::kRedraw)
      .value("policy", Purpose::kPolicy)
      .value("shard", Purpose::kShard);
  nb::enum_<Isa>(m, "Isa", "Which compiled copy of the hot loops runs; all give the same bits.")
      .value("baseline", Isa::kBaseline)
      .value("avx2", Isa::kAvx2)
      .value("avx512", Isa::kAvx512);

  nb::class_<SumTree>(m, "SumTree", "The exact sum tree, without locks and conversions.")
      .def(nb::init<uint64_t>(), "size"_a)
      .def(nb::init<uint64_t, int>(), "size"_a, "fixed_scale"_a)
      .def_prop_ro("size", &SumTree::size)
      .def_prop_ro("total", &SumTree::total)
      .def_prop_ro("scale", &SumTree::scale)
      .def_prop_ro("max_bits", &SumTree::max_bits)
      .def_prop_ro("nbytes", &SumTree::bytes)
      .def("update", &update, "indices"_a, "priorities"_a)
      .def("fill", &fill, "priorities"_a)
      .def("fill_scalar", &fill_scalar, "priority"_a)
      .def("write", &write_leaves, "begin"_a, "priorities"_a)
      .def("adopt", &adopt, "written"_a)
      .def("refit", &SumTree::refit, nb::call_guard<nb::gil_scoped_release>())
      .def("refit_gain", &SumTree::refit_gain, "least"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("set_max", &SumTree::set_max, "bits"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("gather", &gather, "indices"_a, "priorities"_a.noconvert())
      .def("find", &find, "masses"_a, "indices"_a.noconvert())
      .def("sample", &sample, "seed"_a, "epoch"_a, "offset"_a, "scheme"_a, "group"_a, "indices"_a.noconvert(),
           "probabilities"_a.noconvert())
      .def(
          "parked",
          [](const SumTree& tree) {
            const auto& p = tree.parked();
            return nb::typed<nb::tuple, bool, uint64_t, uint32_t, uint64_t, nb::bytes>(
                nb::make_tuple(p.active, p.seed, p.epoch, p.next,
                               nb::bytes(tree.parked_bits().data(), p.active ? (tree.size() + 7) / 8 : 0)));
          },
          "(active, seed, epoch, next, a bit an example)")
      .def(
          "set_parked",
          [](SumTree& tree, uint64_t seed, uint32_t epoch, uint64_t next, In<uint8_t> bits) {
            if (bits.size() != (tree.size() + 7) / 8) throw nb::value_error("bits: expected one for each example");
            tree.set_parked({true, seed, next, epoch}, {bits.data(), bits.data() + bits.size()});
          },
          "seed"_a, "epoch"_a, "next"_a, "bits"_a)
      .def(
          "priorities",
          [](SumTree& tree) {
            return nb::ndarray<const float, nb::numpy, nb::ndim<1>>(tree.priorities(), {tree.size()}, nb::find(tree));
          },
          "A read-only view of all leaves.")
      .def(
          "level",
          [](SumTree& tree, int k) {
            if (k < 0 || k >= tree.levels()) throw nb::index_error("no such level");
            return nb::ndarray<const uint64_t, nb::numpy, nb::ndim<1>>(tree.level(k), {tree.level_size(k)},
                                                                       nb::find(tree));
          },
          "k"_a, "For tests: the nodes of level k, 0 being the one above the leaves.")
      .def_prop_ro("levels", &SumTree::levels);

  nb::class_<Singles>(m, "Singles", nb::type_slots(singles_slots),
                      "An iterator of ints, of which the rest can be taken back.")
      .def(nb::init<Singles::Indices>(), "indices"_a.noconvert())
      .def("__len__", &Singles::size)
      .def_prop_ro("taken", &Singles::taken)
      .def("cut", &Singles::cut);
  m.def("walk", &walk, "n"_a, "seed"_a, "epoch"_a, "purpose"_a, "position"_a, "skip"_a, "indices"_a.noconvert());
  m.def("integers", &integers, "bound"_a, "seed"_a, "epoch"_a, "purpose"_a, "first"_a, "out"_a.noconvert());
  m.def(
      "word",
      [](uint64_t seed, uint32_t epoch, Purpose purpose, uint64_t n, uint32_t attempt) {
        return word({seed, epoch, purpose}, n, attempt);
      },
      "seed"_a, "epoch"_a, "purpose"_a, "n"_a, "attempt"_a);
  m.def(
      "mass", [](float p, int scale) { return mass(priority_bits(p), scale); }, "priority"_a, "scale"_a);
  m.def("get_num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, "n"_a);
  m.def(
      "set_least_per_thread", [](uint64_t n) { least_for_tests = n; }, "n"_a,
      "For tests: how many items make a thread worth starting; 0 for what was measured.");
  m.def("isa", &isa);
  m.def("isa_available", &isa_available, "isa"_a);
  m.def(
      "use_isa",
      [](Isa isa) {
        if (!isa_available(isa)) throw nb::value_error("this processor lacks that instruction set");
        use_isa(isa);
      },
      "isa"_a, "For tests.");
}
