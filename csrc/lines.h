// csrc/lines.h: a zeroed array that starts on a cache line, or on a huge page where it is large.
//
// Large arrays come from mmap, so they cost nothing until they are written, and ask for transparent huge
// pages: a random read in a 4 GB array otherwise pays for a page walk as well as for the line.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace fastprio {

template <class T>
class Lines {
 public:
  Lines() = default;
  explicit Lines(size_t size) : size_(size) {
    const size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
    if (bytes < kHugePage) {
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
      if (!data_) throw std::bad_alloc();
      std::memset(static_cast<void*>(data_), 0, bytes);
      return;
    }
    mapped_ = bytes + kHugePage;  // room to align the start
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t start = (reinterpret_cast<uintptr_t>(base_) + kHugePage - 1) / kHugePage * kHugePage;
    data_ = reinterpret_cast<T*>(start);
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes, MADV_HUGEPAGE);  // a wish: the array works the same without
#endif
  }
  ~Lines() {
    if (mapped_)
      munmap(base_, mapped_);
    else
      std::free(data_);
  }
  Lines(Lines&& other) noexcept { swap(other); }
  Lines& operator=(Lines&& other) noexcept {
    swap(other);
    return *this;
  }

  // The memory of [begin, end), whole huge pages of a large array, goes back to the system; what was there is lost.
  void forget(size_t begin, size_t end) {
    madvise(data_ + begin, (end - begin) * sizeof(T), MADV_DONTNEED);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  void swap(Lines& other) {
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
  }

  size_t size_ = 0, mapped_ = 0;
  void* base_ = nullptr;
  T* data_ = nullptr;
};

}  // namespace fastprio
