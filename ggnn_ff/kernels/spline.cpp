// Many quintic splines of one variable on one uniform grid: value and derivative.
//
// y[e, w] = b0(u) c[k, w] + ... + b5(u) c[k + 5, w],  u = (x[e] - first) / step - k,  with the B-splines of degree 5;
// dy/dx is the same of degree 4 with s[k, w] = (c[k + 1, w] - c[k, w]) / step, kept apart since float32 would lose it.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace {

using at::Tensor;

// How many there are on the grid: a table has a row for each, and `degree` more.
int64_t intervals(const Tensor& x, const Tensor& table, int degree) {
  TORCH_CHECK(x.dim() == 1 && table.dim() == 2 && table.size(0) > degree && x.is_contiguous() &&
                  table.is_contiguous() && x.scalar_type() == table.scalar_type(),
              "spline: tensors do not fit");
  return table.size(0) - degree;
}

// The interval of x, and the uniform B-splines that do not vanish there (recurrence of Cox and de Boor). Beyond the last
// interval, where a cutoff has made all of them zero, they stay what they are at its end.
template <int degree, typename T> struct Place {
  int64_t k;
  std::array<T, degree + 1> b;

  Place(T x, double first, double step, int64_t intervals) {
    const double t = std::min((static_cast<double>(x) - first) / step, static_cast<double>(intervals));
    k = std::clamp<int64_t>(static_cast<int64_t>(std::floor(t)), 0, intervals - 1);
    const double u = t - k;
    double pieces[degree + 1] = {1.0};
    for (int d = 1; d <= degree; ++d)
      for (int m = d; m >= 0; --m)
        pieces[m] = ((m > 0 ? (u + d - m) * pieces[m - 1] : 0.0) + (m < d ? (1.0 - u + m) * pieces[m] : 0.0)) / d;
    for (int m = 0; m <= degree; ++m) b[m] = static_cast<T>(pieces[m]);
  }
};

Tensor values(const Tensor& x, const Tensor& c, const Tensor& slopes, double first, double step) {
  const int64_t n = x.size(0), width = c.size(1), number = intervals(x, c, 5);
  Tensor y = at::empty({n, width}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "spline_values", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    scalar_t* py = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, 64, [&](int64_t from, int64_t to) {
      for (int64_t e = from; e < to; ++e) {
        const auto [k, b] = Place<5, scalar_t>(px[e], first, step, number);
        const scalar_t *__restrict c0 = pc + k * width, *__restrict c1 = c0 + width, *__restrict c2 = c1 + width;
        const scalar_t *__restrict c3 = c2 + width, *__restrict c4 = c3 + width, *__restrict c5 = c4 + width;
        scalar_t* __restrict ye = py + e * width;
        const auto [b0, b1, b2, b3, b4, b5] = b;
        for (int64_t w = 0; w < width; ++w)
          ye[w] = b0 * c0[w] + b1 * c1[w] + b2 * c2[w] + b3 * c3[w] + b4 * c4[w] + b5 * c5[w];
      }
    });
  });
  return y;
}

// d(g . y) / dx, (E,).
Tensor gradient(const Tensor& g, const Tensor& x, const Tensor& slopes, double first, double step) {
  const int64_t n = x.size(0), width = slopes.size(1), number = intervals(x, slopes, 4);
  TORCH_CHECK(g.is_contiguous() && g.numel() == n * width, "spline: tensors do not fit");
  Tensor result = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "spline_gradient", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *ps = slopes.const_data_ptr<scalar_t>();
    const scalar_t* pg = g.const_data_ptr<scalar_t>();
    scalar_t* pr = result.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, n, 64, [&](int64_t from, int64_t to) {
      constexpr int kLanes = 16; // sums side by side, so that the compiler can add vectors
      for (int64_t e = from; e < to; ++e) {
        const auto [k, b] = Place<4, scalar_t>(px[e], first, step, number);
        const scalar_t *__restrict s0 = ps + k * width, *__restrict s1 = s0 + width, *__restrict s2 = s1 + width;
        const scalar_t *__restrict s3 = s2 + width, *__restrict s4 = s3 + width;
        const scalar_t* __restrict ge = pg + e * width;
        const auto [b0, b1, b2, b3, b4] = b;
        scalar_t sums[kLanes] = {};
        int64_t w = 0;
        for (; w + kLanes <= width; w += kLanes)
          for (int i = 0; i < kLanes; ++i)
            sums[i] += ge[w + i] * (b0 * s0[w + i] + b1 * s1[w + i] + b2 * s2[w + i] + b3 * s3[w + i] + b4 * s4[w + i]);
        for (; w < width; ++w) sums[0] += ge[w] * (b0 * s0[w] + b1 * s1[w] + b2 * s2[w] + b3 * s3[w] + b4 * s4[w]);
        scalar_t sum = 0;
        for (const scalar_t part : sums) sum += part;
        pr[e] = sum;
      }
    });
  });
  return result;
}

} // namespace

TORCH_LIBRARY(ggnn_ff_spline, library) {
  library.def("values(Tensor x, Tensor c, Tensor slopes, float first, float step) -> Tensor");
  library.def("gradient(Tensor g, Tensor x, Tensor slopes, float first, float step) -> Tensor");
}

TORCH_LIBRARY_IMPL(ggnn_ff_spline, CPU, library) {
  library.impl("values", values);
  library.impl("gradient", gradient);
}
