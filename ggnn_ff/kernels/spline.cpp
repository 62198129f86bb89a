// Many quintic splines of one variable on one grid: value and derivative.
//
// y[e, w] = c[k, 0, w] + u (c[k, 1, w] + ... + u c[k, 5, w]),  u = (x[e] - first) / step - k

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

namespace {

using at::Tensor;

void check(const Tensor& x, const Tensor& c) {
  TORCH_CHECK(x.dim() == 1 && c.dim() == 3 && c.size(1) == 6 && x.is_contiguous() && c.is_contiguous() &&
                  x.scalar_type() == c.scalar_type(),
              "spline: tensors do not fit");
}

// The interval of each x, and how far in it x lies.
template <typename T> std::pair<int64_t, T> place(T x, double first, double step, int64_t intervals) {
  const double t = (static_cast<double>(x) - first) / step;
  const int64_t k = std::clamp<int64_t>(static_cast<int64_t>(std::floor(t)), 0, intervals - 1);
  return {k, static_cast<T>(t - k)};
}

Tensor values(const Tensor& x, const Tensor& c, double first, double step) {
  check(x, c);
  const int64_t n = x.size(0), width = c.size(2), intervals = c.size(0);
  Tensor y = at::empty({n, width}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "spline_values", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    scalar_t* py = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, 64, [&](int64_t from, int64_t to) {
      for (int64_t e = from; e < to; ++e) {
        const auto [k, u] = place(px[e], first, step, intervals);
        const scalar_t *__restrict c0 = pc + k * 6 * width, *__restrict c1 = c0 + width, *__restrict c2 = c1 + width;
        const scalar_t *__restrict c3 = c2 + width, *__restrict c4 = c3 + width, *__restrict c5 = c4 + width;
        scalar_t* __restrict ye = py + e * width;
        const scalar_t v = u;
        for (int64_t w = 0; w < width; ++w)
          ye[w] = c0[w] + v * (c1[w] + v * (c2[w] + v * (c3[w] + v * (c4[w] + v * c5[w]))));
      }
    });
  });
  return y;
}

// d(g . y) / dx, (E,).
Tensor gradient(const Tensor& g, const Tensor& x, const Tensor& c, double first, double step) {
  check(x, c);
  TORCH_CHECK(g.is_contiguous(), "spline: tensors do not fit");
  const int64_t n = x.size(0), width = c.size(2), intervals = c.size(0);
  Tensor result = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "spline_gradient", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    const scalar_t* pg = g.const_data_ptr<scalar_t>();
    scalar_t* pr = result.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, 64, [&](int64_t from, int64_t to) {
      constexpr int kLanes = 16; // sums side by side, so that the compiler can add vectors
      for (int64_t e = from; e < to; ++e) {
        const auto [k, u] = place(px[e], first, step, intervals);
        const scalar_t *__restrict c1 = pc + (k * 6 + 1) * width, *__restrict c2 = c1 + width;
        const scalar_t *__restrict c3 = c2 + width, *__restrict c4 = c3 + width, *__restrict c5 = c4 + width;
        const scalar_t* __restrict ge = pg + e * width;
        const scalar_t u2 = 2 * u, u3 = 3 * u * u, u4 = 4 * u * u * u, u5 = 5 * u * u * u * u;
        scalar_t sums[kLanes] = {};
        int64_t w = 0;
        for (; w + kLanes <= width; w += kLanes)
          for (int b = 0; b < kLanes; ++b)
            sums[b] += ge[w + b] * (c1[w + b] + u2 * c2[w + b] + u3 * c3[w + b] + u4 * c4[w + b] + u5 * c5[w + b]);
        for (; w < width; ++w) sums[0] += ge[w] * (c1[w] + u2 * c2[w] + u3 * c3[w] + u4 * c4[w] + u5 * c5[w]);
        scalar_t sum = 0;
        for (const scalar_t part : sums) sum += part;
        pr[e] = static_cast<scalar_t>(sum / step);
      }
    });
  });
  return result;
}

} // namespace

TORCH_LIBRARY(ggnn_ff_spline, library) {
  library.def("values(Tensor x, Tensor c, float first, float step) -> Tensor");
  library.def("gradient(Tensor g, Tensor x, Tensor c, float first, float step) -> Tensor");
}

TORCH_LIBRARY_IMPL(ggnn_ff_spline, CPU, library) {
  library.impl("values", values);
  library.impl("gradient", gradient);
}
