// Blocks of channels, shared by the kernels.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

// One block of channels as a vector of the processor.
constexpr int kWidth = 16;
template <typename T> struct Lanes;
template <> struct Lanes<float> { typedef float type __attribute__((vector_size(kWidth * sizeof(float)))); };
template <> struct Lanes<double> { typedef double type __attribute__((vector_size(kWidth * sizeof(double)))); };

template <typename T> typename Lanes<T>::type load(const T* from, int n) { // the first n channels, and zeros
  typename Lanes<T>::type block = {};
  if (n == kWidth) std::memcpy(&block, from, sizeof(block));
  else std::memcpy(&block, from, n * sizeof(T));
  return block;
}

template <typename T> void store(T* to, const typename Lanes<T>::type& block, int n) {
  if (n == kWidth) std::memcpy(to, &block, sizeof(block));
  else std::memcpy(to, &block, n * sizeof(T));
}

template <typename T> T sum(const typename Lanes<T>::type& block) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int b = 0; b < kWidth; ++b) total += block[b];
  return total;
}

inline int width(int64_t channels, int64_t first) {
  return static_cast<int>(std::min<int64_t>(kWidth, channels - first));
}
