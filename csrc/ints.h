// csrc/ints.h: drawn indices as Python ints, one at a time.
//
// Python's own iterator over a list would do, but for one thing: a change of priorities takes back the draws that a
// loader has not taken yet, and must count exactly those that it has, while another thread may be taking them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace fastprio {

class Singles {
 public:
  using Indices = nanobind::ndarray<const int64_t, nanobind::numpy, nanobind::ndim<1>, nanobind::device::cpu>;

  explicit Singles(Indices indices) : indices_(std::move(indices)) {}

  size_t size() const { return indices_.shape(0); }
  // How many have been taken.
  size_t taken() const {
    const size_t next = next_.load();
    return next == kCut ? cut_at_ : next;
  }
  // Takes the rest back; returns how many had been taken. Callers serialise calls of cut() and taken().
  size_t cut() {
    const size_t next = next_.exchange(kCut);
    if (next != kCut) cut_at_ = next;
    return cut_at_;
  }
  // A new reference; null at the end (without an exception, as tp_iternext allows) or for lack of memory.
  PyObject* next() {
    size_t k = next_.load();
    do {
      if (k >= size()) return nullptr;
    } while (!next_.compare_exchange_weak(k, k + 1));
    return PyLong_FromLongLong(indices_.data()[int64_t(k) * indices_.stride(0)]);
  }

 private:
  static constexpr size_t kCut = ~size_t{0};
  Indices indices_;
  std::atomic<size_t> next_{0};
  size_t cut_at_ = 0;
};

// Type slots, because a method would be looked up and dispatched for every number.
inline PyObject* singles_iter(PyObject* self) {
  Py_INCREF(self);
  return self;
}
inline PyObject* singles_next(PyObject* self) { return nanobind::inst_ptr<Singles>(self)->next(); }
inline PyType_Slot singles_slots[] = {{Py_tp_iter, reinterpret_cast<void*>(singles_iter)},
                                      {Py_tp_iternext, reinterpret_cast<void*>(singles_next)},
                                      {0, nullptr}};

}  // namespace fastprio
