// Blocks of channels, shared by the kernels.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

// One block of channels as a vector of the processor.
constexpr int kWidth = 16;
template <typename T, int W = kWidth> struct Lanes { typedef T type __attribute__((vector_size(W * sizeof(T)))); };

template <typename T, int W = kWidth>
typename Lanes<T, W>::type load(const T* from, int n = W) { // the first n channels, and zeros
  typename Lanes<T, W>::type block = {};
  if (n == W) std::memcpy(&block, from, sizeof(block));
  else std::memcpy(&block, from, n * sizeof(T));
  return block;
}

template <typename T, int W = kWidth> void store(T* to, const typename Lanes<T, W>::type& block, int n = W) {
  if (n == W) std::memcpy(to, &block, sizeof(block));
  else std::memcpy(to, &block, n * sizeof(T));
}

template <typename T, int W = kWidth> T sum(const typename Lanes<T, W>::type& block) {
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int b = 0; b < W; ++b) total += block[b];
  return total;
}

inline int width(int64_t channels, int64_t first) {
  return static_cast<int>(std::min<int64_t>(kWidth, channels - first));
}
