// Products of neighbours' features and spherical harmonics, weighted and summed over the neighbours, and its gradient.
//
// a[i, r, f] = sum over edges e from i, to j:  w[e, path(r), f]  sum_c t[e, r, c] x[j, c, f]
// t[e, r, c] = sum_h coefficient[r, c, h] y[e, h],  for the components c of one degree and the few h of each (r, c)
//
// Nothing of the size edges x rows x channels is ever stored. Edges are sorted by centre; threads share the centres, and
// what they write for neighbours goes to a copy of each thread, so that sums have one order.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "edges.h"
#include "lanes.h"

namespace {

using at::Tensor;

struct Tables { // which products there are
  int64_t n_rows, n_pairs, n_terms;
  const int64_t *component, *path, *term_pair, *term_harmonic;
  const double* coefficient;
  std::vector<int64_t> first; // pairs of each row: first[r] ... first[r + 1] - 1; their components are consecutive
  std::vector<int64_t> order; // rows, those of equal components together

  Tables(const Tensor& pairs, const Tensor& paths, const Tensor& terms, const Tensor& coefficients)
      : n_rows(paths.size(0)), n_pairs(pairs.size(1)), n_terms(terms.size(1)), first(paths.size(0) + 1, 0) {
    TORCH_CHECK(pairs.is_contiguous() && paths.is_contiguous() && terms.is_contiguous(), "convolution: tables");
    const int64_t* row = pairs.const_data_ptr<int64_t>();
    component = row + n_pairs;
    path = paths.const_data_ptr<int64_t>();
    term_pair = terms.const_data_ptr<int64_t>();
    term_harmonic = term_pair + n_terms;
    coefficient = coefficients.const_data_ptr<double>();
    for (int64_t k = 0; k < n_pairs; ++k) ++first[row[k] + 1];
    for (int64_t r = 0; r < n_rows; ++r) first[r + 1] += first[r];
    order.resize(n_rows);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return component[first[a]] < component[first[b]];
    });
  }
  int64_t count(int64_t row) const { return first[row + 1] - first[row]; }
};

struct Sizes {
  int64_t atoms, components, channels, edges, harmonics, paths;
};

Sizes check(const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& edges) {
  TORCH_CHECK(x.dim() == 3 && y.dim() == 2 && w.dim() == 3 && edges.dim() == 2, "convolution: wrong dimensions");
  TORCH_CHECK(x.is_contiguous() && y.is_contiguous() && w.is_contiguous() && edges.is_contiguous(),
              "convolution: tensors must be contiguous");
  TORCH_CHECK(x.scalar_type() == y.scalar_type() && x.scalar_type() == w.scalar_type(), "convolution: one dtype");
  TORCH_CHECK(edges.size(0) == 2 && y.size(0) == edges.size(1) && w.size(0) == edges.size(1) && w.size(2) == x.size(2),
              "convolution: sizes do not fit");
  return {x.size(0), x.size(1), x.size(2), edges.size(1), y.size(1), w.size(1)};
}

// t of up to kWidth edges side by side: what belongs to the pair k of the edge e is t[k][e].
template <typename T> class Mixed {
  using Block = typename Lanes<T>::type;
  const Tables& tables;
  std::vector<T> coefficients;
  std::vector<Block> t, y, sums;

public:
  Mixed(const Tables& tables, const Sizes& s)
      : tables(tables), coefficients(tables.coefficient, tables.coefficient + tables.n_terms), t(tables.n_pairs),
        y(s.harmonics), sums(s.harmonics) {}

  void mix(const T* harmonics, int64_t n_edges) {
    for (size_t h = 0; h < y.size(); ++h)
      for (int64_t e = 0; e < n_edges; ++e) y[h][e] = harmonics[e * y.size() + h];
    int64_t q = 0; // terms are sorted by pair
    for (int64_t k = 0; k < tables.n_pairs; ++k) {
      Block one = {};
      for (; q < tables.n_terms && tables.term_pair[q] == k; ++q) one += coefficients[q] * y[tables.term_harmonic[q]];
      t[k] = one;
    }
  }

  const T* of_edge(int64_t e) const { return reinterpret_cast<const T*>(t.data()) + e; } // that of k at k * kWidth

  // Derivatives with respect to the harmonics of one edge from those with respect to its t, by channel.
  void unmix(T* dy, const Block* dt) {
    std::fill(sums.begin(), sums.end(), Block{});
    for (int64_t q = 0; q < tables.n_terms; ++q)
      sums[tables.term_harmonic[q]] += coefficients[q] * dt[tables.term_pair[q]];
    for (size_t h = 0; h < sums.size(); ++h) dy[h] = sum<T>(sums[h]);
  }
};

// One block of channels of one edge.
template <typename T> struct OneBlock {
  using Block = typename Lanes<T>::type;
  const Tables& tables;
  const T *t, *x, *w; // x: of the neighbour
  int64_t channels;
  int n;

  // Adds to the sums of all rows.
  void add(Block* sums) const {
    for (size_t q = 0; q < tables.order.size();) {
      switch (tables.count(tables.order[q])) { // components of features of degree 0 to 3
      case 1: q = add_rows<1>(q, sums); break;
      case 3: q = add_rows<3>(q, sums); break;
      case 5: q = add_rows<5>(q, sums); break;
      default: q = add_rows<7>(q, sums);
      }
    }
  }

  // Derivatives: adds to those of x, t and w, the last of which begin as zeros; g is of the centre.
  void derive(const T* g, T* dx, Block* dt, Block* dw) const {
    for (size_t q = 0; q < tables.order.size();) {
      switch (tables.count(tables.order[q])) {
      case 1: q = derive_rows<1>(q, g, dx, dt, dw); break;
      case 3: q = derive_rows<3>(q, g, dx, dt, dw); break;
      case 5: q = derive_rows<5>(q, g, dx, dt, dw); break;
      default: q = derive_rows<7>(q, g, dx, dt, dw);
      }
    }
  }

  // Of the derivatives along h, from g of the centre: adds to their derivatives with respect to g (by row), x, t and w;
  // th, xh and wh are the h of t, x and w.
  void second(const T* th, const T* xh, const T* wh, const T* g, Block* dg, T* dx, Block* dt, Block* dw) const {
    for (size_t q = 0; q < tables.order.size();) {
      switch (tables.count(tables.order[q])) {
      case 1: q = second_rows<1>(q, th, xh, wh, g, dg, dx, dt, dw); break;
      case 3: q = second_rows<3>(q, th, xh, wh, g, dg, dx, dt, dw); break;
      case 5: q = second_rows<5>(q, th, xh, wh, g, dg, dx, dt, dw); break;
      default: q = second_rows<7>(q, th, xh, wh, g, dg, dx, dt, dw);
      }
    }
  }

private:
  // Rows from the q-th on that have the same N components, which stay in the processor; the next one after them.
  template <int N> size_t add_rows(size_t q, Block* sums) const {
    const int64_t c = tables.component[tables.first[tables.order[q]]];
    Block xs[N];
    for (int k = 0; k < N; ++k) xs[k] = load(x + (c + k) * channels, n);
    for (; q < tables.order.size(); ++q) {
      const int64_t r = tables.order[q], first = tables.first[r];
      if (tables.component[first] != c) break;
      Block product = {};
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) product += t[(first + k) * kWidth] * xs[k];
      sums[r] += load(w + tables.path[r] * channels, n) * product;
    }
    return q;
  }

  template <int N> size_t derive_rows(size_t q, const T* g, T* dx, Block* dt, Block* dw) const {
    const int64_t c = tables.component[tables.first[tables.order[q]]];
    Block xs[N], sums[N] = {};
    for (int k = 0; k < N; ++k) xs[k] = load(x + (c + k) * channels, n);
    for (; q < tables.order.size(); ++q) {
      const int64_t r = tables.order[q], first = tables.first[r];
      if (tables.component[first] != c) break;
      const Block of_row = load(g + r * channels, n);
      const Block u = of_row * load(w + tables.path[r] * channels, n);
      Block product = {};
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        const T one = t[(first + k) * kWidth];
        product += one * xs[k];
        sums[k] += one * u;
        dt[first + k] += u * xs[k];
      }
      dw[tables.path[r]] += of_row * product;
    }
    for (int k = 0; k < N; ++k) store(dx + (c + k) * channels, load(dx + (c + k) * channels, n) + sums[k], n);
    return q;
  }

  template <int N>
  size_t second_rows(size_t q, const T* th, const T* xh, const T* wh, const T* g, Block* dg, T* dx, Block* dt,
                     Block* dw) const {
    const int64_t c = tables.component[tables.first[tables.order[q]]];
    Block xs[N], hs[N], sums[N] = {};
    for (int k = 0; k < N; ++k) {
      xs[k] = load(x + (c + k) * channels, n);
      hs[k] = load(xh + (c + k) * channels, n);
    }
    for (; q < tables.order.size(); ++q) {
      const int64_t r = tables.order[q], first = tables.first[r];
      if (tables.component[first] != c) break;
      const Block of_row = load(g + r * channels, n), weight = load(w + tables.path[r] * channels, n);
      const Block of_h = load(wh + tables.path[r] * channels, n), u = of_row * weight, v = of_row * of_h;
      Block product = {}, along = {};
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        const T one = t[(first + k) * kWidth], other = th[(first + k) * kWidth];
        product += one * xs[k];
        along += one * hs[k] + other * xs[k];
        sums[k] += other * u + one * v;
        dt[first + k] += u * hs[k] + v * xs[k];
      }
      dg[r] += weight * along + of_h * product;
      dw[tables.path[r]] += of_row * along;
    }
    for (int k = 0; k < N; ++k) store(dx + (c + k) * channels, load(dx + (c + k) * channels, n) + sums[k], n);
    return q;
  }
};

// a of the formula above, (N, rows, F).
Tensor convolve(const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& edges, const Tensor& pairs,
                const Tensor& paths, const Tensor& terms, const Tensor& coefficients) {
  const Sizes s = check(x, y, w, edges);
  const Tables tables(pairs, paths, terms, coefficients);
  const int64_t* neighbour = edges.const_data_ptr<int64_t>() + s.edges;
  const std::vector<int64_t> start = starts(edges, s.atoms);
  Tensor a = at::empty({s.atoms, tables.n_rows, s.channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *py = y.const_data_ptr<scalar_t>();
    const scalar_t* pw = w.const_data_ptr<scalar_t>();
    scalar_t* pa = a.mutable_data_ptr<scalar_t>();
    using Block = Lanes<scalar_t>::type;
    at::parallel_for(0, s.atoms, 16, [&](int64_t from, int64_t to) {
      Mixed<scalar_t> t(tables, s);
      const int64_t n_blocks = (s.channels + kWidth - 1) / kWidth;
      std::vector<Block> sums(n_blocks * tables.n_rows);
      for (int64_t i = from; i < to; ++i) {
        std::fill(sums.begin(), sums.end(), Block{});
        for (int64_t group = start[i]; group < start[i + 1]; group += kWidth) {
          const int64_t n_edges = std::min<int64_t>(kWidth, start[i + 1] - group);
          t.mix(py + group * s.harmonics, n_edges);
          for (int64_t e = 0; e < n_edges; ++e) {
            const scalar_t* xe = px + neighbour[group + e] * s.components * s.channels;
            const scalar_t* we = pw + (group + e) * s.paths * s.channels;
            for (int64_t b = 0; b < n_blocks; ++b) {
              const int64_t f = b * kWidth;
              OneBlock<scalar_t>{tables, t.of_edge(e), xe + f, we + f, s.channels, width(s.channels, f)}.add(
                  sums.data() + b * tables.n_rows);
            }
          }
        }
        for (int64_t b = 0; b < n_blocks; ++b)
          for (int64_t r = 0; r < tables.n_rows; ++r)
            store(pa + (i * tables.n_rows + r) * s.channels + b * kWidth, sums[b * tables.n_rows + r],
                  width(s.channels, b * kWidth));
      }
    });
  });
  return a;
}

// Derivatives of g . a with respect to x, y and w.
std::tuple<Tensor, Tensor, Tensor> gradient(const Tensor& g, const Tensor& x, const Tensor& y, const Tensor& w,
                                            const Tensor& edges, const Tensor& pairs, const Tensor& paths,
                                            const Tensor& terms, const Tensor& coefficients) {
  const Sizes s = check(x, y, w, edges);
  const Tables tables(pairs, paths, terms, coefficients);
  TORCH_CHECK(g.is_contiguous() && g.size(0) == s.atoms && g.size(1) == tables.n_rows, "convolution: wrong gradient");
  const int64_t* neighbour = edges.const_data_ptr<int64_t>() + s.edges;
  const std::vector<int64_t> start = starts(edges, s.atoms);
  const int64_t parts = parts_of(s.atoms);
  Tensor to_x = at::zeros({parts, s.atoms, s.components, s.channels}, x.options());
  Tensor to_y = at::empty_like(y), to_w = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution_gradient", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *py = y.const_data_ptr<scalar_t>();
    const scalar_t *pw = w.const_data_ptr<scalar_t>(), *pg = g.const_data_ptr<scalar_t>();
    scalar_t *qx = to_x.mutable_data_ptr<scalar_t>(), *qy = to_y.mutable_data_ptr<scalar_t>();
    scalar_t* qw = to_w.mutable_data_ptr<scalar_t>();
    using Block = Lanes<scalar_t>::type;
    at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
      Mixed<scalar_t> t(tables, s);
      std::vector<Block> dw(s.paths), dt(tables.n_pairs);
      for (int64_t part = from; part < to; ++part) {
        scalar_t* mine = qx + part * s.atoms * s.components * s.channels;
        for (int64_t i = part * s.atoms / parts; i < (part + 1) * s.atoms / parts; ++i) {
          const scalar_t* gi = pg + i * tables.n_rows * s.channels;
          for (int64_t group = start[i]; group < start[i + 1]; group += kWidth) {
            const int64_t n_edges = std::min<int64_t>(kWidth, start[i + 1] - group);
            t.mix(py + group * s.harmonics, n_edges);
            for (int64_t e = 0; e < n_edges; ++e) {
              const int64_t edge = group + e, of_neighbour = neighbour[edge] * s.components * s.channels;
              std::fill(dt.begin(), dt.end(), Block{});
              for (int64_t f = 0; f < s.channels; f += kWidth) {
                const int n = width(s.channels, f);
                const int64_t of_paths = edge * s.paths * s.channels + f;
                std::fill(dw.begin(), dw.end(), Block{});
                OneBlock<scalar_t>{tables, t.of_edge(e), px + of_neighbour + f, pw + of_paths, s.channels, n}.derive(
                    gi + f, mine + of_neighbour + f, dt.data(), dw.data());
                for (int64_t p = 0; p < s.paths; ++p) store(qw + of_paths + p * s.channels, dw[p], n);
              }
              t.unmix(qy + edge * s.harmonics, dt.data());
            }
          }
        }
      }
    });
  });
  return {parts == 1 ? to_x.squeeze(0) : to_x.sum(0), to_y, to_w};
}

// Derivatives of hx . dx + hy . dy + hw . dw, where dx, dy, dw are from gradient, with respect to g, x, y and w.
std::tuple<Tensor, Tensor, Tensor, Tensor> second(const Tensor& hx, const Tensor& hy, const Tensor& hw,
                                                  const Tensor& g, const Tensor& x, const Tensor& y, const Tensor& w,
                                                  const Tensor& edges, const Tensor& pairs, const Tensor& paths,
                                                  const Tensor& terms, const Tensor& coefficients) {
  const Sizes s = check(x, y, w, edges);
  check(hx, hy, hw, edges);
  const Tables tables(pairs, paths, terms, coefficients);
  TORCH_CHECK(hx.sizes() == x.sizes() && hy.sizes() == y.sizes() && hw.sizes() == w.sizes() && g.is_contiguous() &&
                  g.size(0) == s.atoms && g.size(1) == tables.n_rows,
              "convolution: wrong gradient");
  const int64_t* neighbour = edges.const_data_ptr<int64_t>() + s.edges;
  const std::vector<int64_t> start = starts(edges, s.atoms);
  const int64_t parts = parts_of(s.atoms);
  Tensor to_x = at::zeros({parts, s.atoms, s.components, s.channels}, x.options());
  Tensor to_g = at::empty_like(g), to_y = at::empty_like(y), to_w = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution_second", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *phx = hx.const_data_ptr<scalar_t>();
    const scalar_t *py = y.const_data_ptr<scalar_t>(), *phy = hy.const_data_ptr<scalar_t>();
    const scalar_t *pw = w.const_data_ptr<scalar_t>(), *phw = hw.const_data_ptr<scalar_t>();
    const scalar_t* pg = g.const_data_ptr<scalar_t>();
    scalar_t *qx = to_x.mutable_data_ptr<scalar_t>(), *qy = to_y.mutable_data_ptr<scalar_t>();
    scalar_t *qw = to_w.mutable_data_ptr<scalar_t>(), *qg = to_g.mutable_data_ptr<scalar_t>();
    using Block = Lanes<scalar_t>::type;
    at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
      Mixed<scalar_t> t(tables, s), th(tables, s);
      const int64_t n_blocks = (s.channels + kWidth - 1) / kWidth;
      std::vector<Block> dw(s.paths), dt(tables.n_pairs), dg(n_blocks * tables.n_rows);
      for (int64_t part = from; part < to; ++part) {
        scalar_t* mine = qx + part * s.atoms * s.components * s.channels;
        for (int64_t i = part * s.atoms / parts; i < (part + 1) * s.atoms / parts; ++i) {
          const scalar_t* gi = pg + i * tables.n_rows * s.channels;
          std::fill(dg.begin(), dg.end(), Block{});
          for (int64_t group = start[i]; group < start[i + 1]; group += kWidth) {
            const int64_t n_edges = std::min<int64_t>(kWidth, start[i + 1] - group);
            t.mix(py + group * s.harmonics, n_edges);
            th.mix(phy + group * s.harmonics, n_edges);
            for (int64_t e = 0; e < n_edges; ++e) {
              const int64_t edge = group + e, of_neighbour = neighbour[edge] * s.components * s.channels;
              std::fill(dt.begin(), dt.end(), Block{});
              for (int64_t b = 0; b < n_blocks; ++b) {
                const int64_t f = b * kWidth, of_paths = edge * s.paths * s.channels + f;
                const int n = width(s.channels, f);
                std::fill(dw.begin(), dw.end(), Block{});
                OneBlock<scalar_t>{tables, t.of_edge(e), px + of_neighbour + f, pw + of_paths, s.channels, n}.second(
                    th.of_edge(e), phx + of_neighbour + f, phw + of_paths, gi + f, dg.data() + b * tables.n_rows,
                    mine + of_neighbour + f, dt.data(), dw.data());
                for (int64_t p = 0; p < s.paths; ++p) store(qw + of_paths + p * s.channels, dw[p], n);
              }
              t.unmix(qy + edge * s.harmonics, dt.data());
            }
          }
          for (int64_t b = 0; b < n_blocks; ++b)
            for (int64_t r = 0; r < tables.n_rows; ++r)
              store(qg + (i * tables.n_rows + r) * s.channels + b * kWidth, dg[b * tables.n_rows + r],
                    width(s.channels, b * kWidth));
        }
      }
    });
  });
  return {to_g, parts == 1 ? to_x.squeeze(0) : to_x.sum(0), to_y, to_w};
}

} // namespace

TORCH_LIBRARY(ggnn_ff_convolution, library) {
  library.def("convolve(Tensor x, Tensor y, Tensor w, Tensor edges, Tensor pairs, Tensor paths, Tensor terms, "
              "Tensor coefficients) -> Tensor");
  library.def("gradient(Tensor g, Tensor x, Tensor y, Tensor w, Tensor edges, Tensor pairs, Tensor paths, "
              "Tensor terms, Tensor coefficients) -> (Tensor, Tensor, Tensor)");
  library.def("second(Tensor hx, Tensor hy, Tensor hw, Tensor g, Tensor x, Tensor y, Tensor w, Tensor edges, "
              "Tensor pairs, Tensor paths, Tensor terms, Tensor coefficients) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ggnn_ff_convolution, CPU, library) {
  library.impl("convolve", convolve);
  library.impl("gradient", gradient);
  library.impl("second", second);
}
