// Polynomials of the components of A, and their derivatives up to the second, one channel beside the other.
//
// y[n, m, f] = sum_k c[z[n], m, k, f] x[i] x[j] x[l]   with x = (a[n, 0..R-1, f], 1) and (i, j, l) = monomials[:, m, k]
//
// A block of channels is one vector of the processor: x stays in the nearest cache while all monomials are visited.
// Threads share the blocks, so that no two write to one place and sums have one order.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "lanes.h"

namespace {

constexpr int kMaxFactors = 64; // components of A, and one

struct Sizes {
  int64_t atoms, components, outputs, monomials, channels;
};

Sizes check(const at::Tensor& a, const at::Tensor& c, const at::Tensor& z, const at::Tensor& table) {
  TORCH_CHECK(a.dim() == 3 && c.dim() == 4 && z.dim() == 1 && table.dim() == 3, "contraction: wrong dimensions");
  TORCH_CHECK(a.is_contiguous() && c.is_contiguous() && z.is_contiguous() && table.is_contiguous(),
              "contraction: tensors must be contiguous");
  TORCH_CHECK(a.scalar_type() == c.scalar_type(), "contraction: one dtype, please");
  TORCH_CHECK(a.size(0) == z.size(0) && a.size(2) == c.size(3) && table.size(0) == 3 &&
                  table.size(1) == c.size(1) && table.size(2) == c.size(2) && a.size(1) < kMaxFactors,
              "contraction: sizes do not fit");
  const int64_t* element = z.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < z.size(0); ++n)
    TORCH_CHECK(0 <= element[n] && element[n] < c.size(0), "contraction: an element that the potential does not know");
  return {a.size(0), a.size(1), c.size(1), c.size(2), a.size(2)};
}

// Calls visit(first channel, how many) for each block, on all threads.
template <typename Visit> void for_blocks(int64_t channels, const Visit& visit) {
  const int64_t blocks = (channels + kWidth - 1) / kWidth;
  at::parallel_for(0, blocks, 1, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block)
      visit(block * kWidth, width(channels, block * kWidth));
  });
}

template <typename T> struct Rows { // one atom's components, and a row of ones (or zeros) at the end
  using Block = typename Lanes<T>::type;
  Block at[kMaxFactors];
  void read(const T* from, const Sizes& s, int64_t first, int n, T last) {
    for (int64_t r = 0; r < s.components; ++r) at[r] = load(from + r * s.channels + first, n);
    at[s.components] = Block{} + last;
  }
  void clear(const Sizes& s) {
    for (int64_t r = 0; r <= s.components; ++r) at[r] = Block{};
  }
  void write(T* to, const Sizes& s, int64_t first, int n) const {
    for (int64_t r = 0; r < s.components; ++r) store(to + r * s.channels + first, at[r], n);
  }
};

// y of the formula above.
at::Tensor values(const at::Tensor& a, const at::Tensor& c, const at::Tensor& z, const at::Tensor& table) {
  const Sizes s = check(a, c, z, table);
  at::Tensor y = at::empty({s.atoms, s.outputs, s.channels}, a.options());
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "contraction_values", [&] {
    const scalar_t *pa = a.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    const int64_t *pz = z.const_data_ptr<int64_t>(), *pt = table.const_data_ptr<int64_t>();
    scalar_t* py = y.mutable_data_ptr<scalar_t>();
    const int64_t terms = s.outputs * s.monomials;
    using Block = Lanes<scalar_t>::type;
    for_blocks(s.channels, [&](int64_t first, int n) {
      Rows<scalar_t> x;
      for (int64_t atom = 0; atom < s.atoms; ++atom) {
        x.read(pa + atom * s.components * s.channels, s, first, n, scalar_t(1));
        const scalar_t* coefficient = pc + pz[atom] * terms * s.channels + first;
        for (int64_t m = 0, t = 0; m < s.outputs; ++m) {
          Block sum = {};
          for (int64_t k = 0; k < s.monomials; ++k, ++t, coefficient += s.channels)
            sum += load(coefficient, n) * x.at[pt[t]] * x.at[pt[terms + t]] * x.at[pt[2 * terms + t]];
          store(py + (atom * s.outputs + m) * s.channels + first, sum, n);
        }
      }
    });
  });
  return y;
}

// d(g . y) / da, (N, R, F).
at::Tensor gradient(const at::Tensor& g, const at::Tensor& a, const at::Tensor& c, const at::Tensor& z,
                    const at::Tensor& table) {
  const Sizes s = check(a, c, z, table);
  TORCH_CHECK(g.is_contiguous() && g.size(1) == s.outputs, "contraction: wrong gradient");
  at::Tensor result = at::empty_like(a);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "contraction_gradient", [&] {
    const scalar_t *pa = a.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    const scalar_t* pg = g.const_data_ptr<scalar_t>();
    const int64_t *pz = z.const_data_ptr<int64_t>(), *pt = table.const_data_ptr<int64_t>();
    scalar_t* pr = result.mutable_data_ptr<scalar_t>();
    const int64_t terms = s.outputs * s.monomials;
    using Block = Lanes<scalar_t>::type;
    for_blocks(s.channels, [&](int64_t first, int n) {
      Rows<scalar_t> x, dx;
      for (int64_t atom = 0; atom < s.atoms; ++atom) {
        x.read(pa + atom * s.components * s.channels, s, first, n, scalar_t(1));
        dx.clear(s);
        const scalar_t* coefficient = pc + pz[atom] * terms * s.channels + first;
        for (int64_t m = 0, t = 0; m < s.outputs; ++m) {
          const Block of_output = load(pg + (atom * s.outputs + m) * s.channels + first, n);
          for (int64_t k = 0; k < s.monomials; ++k, ++t, coefficient += s.channels) {
            const int64_t i = pt[t], j = pt[terms + t], l = pt[2 * terms + t];
            const Block xi = x.at[i], xj = x.at[j], xl = x.at[l], w = of_output * load(coefficient, n);
            dx.at[i] += w * xj * xl;
            dx.at[j] += w * xi * xl;
            dx.at[l] += w * xi * xj;
          }
        }
        dx.write(pr + atom * s.components * s.channels, s, first, n);
      }
    });
  });
  return result;
}

// d(g . y) / dc, (elements, M, K, F).
at::Tensor coefficients(const at::Tensor& g, const at::Tensor& a, const at::Tensor& c, const at::Tensor& z,
                        const at::Tensor& table) {
  const Sizes s = check(a, c, z, table);
  at::Tensor result = at::zeros_like(c);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "contraction_coefficients", [&] {
    const scalar_t *pa = a.const_data_ptr<scalar_t>(), *pg = g.const_data_ptr<scalar_t>();
    const int64_t *pz = z.const_data_ptr<int64_t>(), *pt = table.const_data_ptr<int64_t>();
    scalar_t* pr = result.mutable_data_ptr<scalar_t>();
    const int64_t terms = s.outputs * s.monomials;
    using Block = Lanes<scalar_t>::type;
    for_blocks(s.channels, [&](int64_t first, int n) {
      Rows<scalar_t> x;
      for (int64_t atom = 0; atom < s.atoms; ++atom) {
        x.read(pa + atom * s.components * s.channels, s, first, n, scalar_t(1));
        scalar_t* to = pr + pz[atom] * terms * s.channels + first;
        for (int64_t m = 0, t = 0; m < s.outputs; ++m) {
          const Block of_output = load(pg + (atom * s.outputs + m) * s.channels + first, n);
          for (int64_t k = 0; k < s.monomials; ++k, ++t, to += s.channels) {
            const Block product = x.at[pt[t]] * x.at[pt[terms + t]] * x.at[pt[2 * terms + t]];
            store(to, load(to, n) + of_output * product, n);
          }
        }
      }
    });
  });
  return result;
}

// Derivatives of h . d(g . y)/da with respect to g, a and c.
std::tuple<at::Tensor, at::Tensor, at::Tensor> second(const at::Tensor& h, const at::Tensor& g, const at::Tensor& a,
                                                      const at::Tensor& c, const at::Tensor& z,
                                                      const at::Tensor& table) {
  const Sizes s = check(a, c, z, table);
  TORCH_CHECK(h.is_contiguous() && g.is_contiguous(), "contraction: tensors must be contiguous");
  at::Tensor to_g = at::empty_like(g), to_a = at::empty_like(a), to_c = at::zeros_like(c);
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "contraction_second", [&] {
    const scalar_t *pa = a.const_data_ptr<scalar_t>(), *pc = c.const_data_ptr<scalar_t>();
    const scalar_t *pg = g.const_data_ptr<scalar_t>(), *ph = h.const_data_ptr<scalar_t>();
    const int64_t *pz = z.const_data_ptr<int64_t>(), *pt = table.const_data_ptr<int64_t>();
    scalar_t *qg = to_g.mutable_data_ptr<scalar_t>(), *qa = to_a.mutable_data_ptr<scalar_t>();
    scalar_t* qc = to_c.mutable_data_ptr<scalar_t>();
    const int64_t terms = s.outputs * s.monomials;
    using Block = Lanes<scalar_t>::type;
    for_blocks(s.channels, [&](int64_t first, int n) {
      Rows<scalar_t> x, d, dx; // d: the direction h, with zero beside the row of ones
      for (int64_t atom = 0; atom < s.atoms; ++atom) {
        x.read(pa + atom * s.components * s.channels, s, first, n, scalar_t(1));
        d.read(ph + atom * s.components * s.channels, s, first, n, scalar_t(0));
        dx.clear(s);
        const int64_t start = pz[atom] * terms * s.channels + first;
        const scalar_t* coefficient = pc + start;
        scalar_t* to = qc + start;
        for (int64_t m = 0, t = 0; m < s.outputs; ++m) {
          const Block of_output = load(pg + (atom * s.outputs + m) * s.channels + first, n);
          Block sum = {};
          for (int64_t k = 0; k < s.monomials; ++k, ++t, coefficient += s.channels, to += s.channels) {
            const int64_t i = pt[t], j = pt[terms + t], l = pt[2 * terms + t];
            const Block xi = x.at[i], xj = x.at[j], xl = x.at[l], di = d.at[i], dj = d.at[j], dl = d.at[l];
            const Block c = load(coefficient, n), w = of_output * c;
            const Block jl = dj * xl + xj * dl, il = di * xl + xi * dl, ij = di * xj + xi * dj;
            const Block along = di * xj * xl + xi * jl;
            sum += c * along;
            store(to, load(to, n) + of_output * along, n);
            dx.at[i] += w * jl;
            dx.at[j] += w * il;
            dx.at[l] += w * ij;
          }
          store(qg + (atom * s.outputs + m) * s.channels + first, sum, n);
        }
        dx.write(qa + atom * s.components * s.channels, s, first, n);
      }
    });
  });
  return {to_g, to_a, to_c};
}

} // namespace

TORCH_LIBRARY(ggnn_ff_contraction, library) {
  library.def("values(Tensor a, Tensor c, Tensor z, Tensor table) -> Tensor");
  library.def("gradient(Tensor g, Tensor a, Tensor c, Tensor z, Tensor table) -> Tensor");
  library.def("coefficients(Tensor g, Tensor a, Tensor c, Tensor z, Tensor table) -> Tensor");
  library.def("second(Tensor h, Tensor g, Tensor a, Tensor c, Tensor z, Tensor table) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ggnn_ff_contraction, CPU, library) {
  library.impl("values", values);
  library.impl("gradient", gradient);
  library.impl("coefficients", coefficients);
  library.impl("second", second);
}
