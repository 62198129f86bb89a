// Rows added to rows by number: out[index[e]] = self[index[e]] + alpha * source[e], always in the order of e.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

namespace {

using at::Tensor;

constexpr int64_t kColumns = 16, kRows = 256; // that a thread is worth

template <typename T>
void add_block(T* out, const int64_t* index, const T* source, T alpha, int64_t width, int64_t first, int64_t last,
               int64_t left, int64_t right) {
  for (int64_t e = first; e < last; ++e) {
    T* __restrict to = out + index[e] * width;
    const T* __restrict from = source + e * width;
    for (int64_t w = left; w < right; ++w) to[w] += alpha * from[w];
  }
}

Tensor add(const Tensor& self, const Tensor& index, const Tensor& source, double alpha) {
  const int64_t n = index.numel(), rows = self.size(0);
  const int64_t width = rows ? self.numel() / rows : 0;
  TORCH_CHECK(index.dim() == 1 && index.scalar_type() == at::kLong && index.is_contiguous() &&
                  source.is_contiguous() && source.numel() == n * width && source.scalar_type() == self.scalar_type(),
              "sums: tensors do not fit");
  Tensor out = self.clone(at::MemoryFormat::Contiguous);
  const int64_t* row = index.const_data_ptr<int64_t>();
  bool sorted = true, inside = true;
  for (int64_t e = 0; e < n; ++e) {
    inside &= row[e] >= 0 && row[e] < rows;
    sorted &= e == 0 || row[e] >= row[e - 1];
  }
  TORCH_CHECK(inside, "sums: an index is out of range");
  AT_DISPATCH_FLOATING_TYPES(self.scalar_type(), "sums_add", [&] {
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const scalar_t* from = source.const_data_ptr<scalar_t>();
    const scalar_t factor = alpha;
    if (sorted) { // a thread has whole rows
      const auto next = [&](int64_t e) {
        while (e > 0 && e < n && row[e] == row[e - 1]) ++e;
        return e;
      };
      at::parallel_for(0, n, kRows, [&](int64_t begin, int64_t end) {
        add_block(to, row, from, factor, width, next(begin), next(end), int64_t{0}, width);
      });
    } else { // a thread has some columns
      at::parallel_for(0, (width + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
        add_block(to, row, from, factor, width, int64_t{0}, n, begin * kColumns, std::min(end * kColumns, width));
      });
    }
  });
  return out;
}

} // namespace

TORCH_LIBRARY(ggnn_ff_sums, library) {
  library.def("add(Tensor self, Tensor index, Tensor source, float alpha) -> Tensor");
}

TORCH_LIBRARY_IMPL(ggnn_ff_sums, CPU, library) {
  library.impl("add", add);
}
