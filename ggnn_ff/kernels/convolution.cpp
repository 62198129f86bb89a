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

// The first edge of each centre, and the end.
std::vector<int64_t> starts(const int64_t* centre, const int64_t* neighbour, const Sizes& s) {
  std::vector<int64_t> start(s.atoms + 1, 0);
  for (int64_t e = 0; e < s.edges; ++e) {
    TORCH_CHECK(0 <= centre[e] && centre[e] < s.atoms && 0 <= neighbour[e] && neighbour[e] < s.atoms,
                "convolution: an edge of an atom that is not there");
    TORCH_CHECK(e == 0 || centre[e - 1] <= centre[e], "convolution: edges must be sorted by centre");
    ++start[centre[e] + 1];
  }
  for (int64_t i = 0; i < s.atoms; ++i) start[i + 1] += start[i];
  return start;
}

template <typename T> void mix(T* t, const T* y, const Tables& tables) { // t of one edge
  for (int64_t k = 0; k < tables.n_pairs; ++k) t[k] = 0;
  for (int64_t q = 0; q < tables.n_terms; ++q)
    t[tables.term_pair[q]] += static_cast<T>(tables.coefficient[q]) * y[tables.term_harmonic[q]];
}

// One block of channels of one edge, in the derivative.
template <typename T> struct OneBlock {
  using Block = typename Lanes<T>::type;
  const Tables& tables;
  const T* t;
  const Block* x;
  Block *dx, *dt, *dw;
  const T *g, *w;
  int64_t channels;
  int n;

  // Rows from the q-th on that have the same N components, which stay in the processor; the next one after them.
  template <int N> size_t rows(size_t q) const {
    const int64_t c = tables.component[tables.first[tables.order[q]]];
    Block xs[N], sums[N] = {};
    for (int k = 0; k < N; ++k) xs[k] = x[c + k];
    for (; q < tables.order.size(); ++q) {
      const int64_t r = tables.order[q], first = tables.first[r];
      if (tables.component[first] != c) break;
      const Block of_row = load(g + r * channels, n);
      const Block u = of_row * load(w + tables.path[r] * channels, n);
      Block product = {};
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) {
        product += t[first + k] * xs[k];
        sums[k] += t[first + k] * u;
        dt[first + k] += u * xs[k];
      }
      dw[tables.path[r]] += of_row * product;
    }
    for (int k = 0; k < N; ++k) dx[c + k] = sums[k];
    return q;
  }
};

// a of the formula above, (N, rows, F).
Tensor convolve(const Tensor& x, const Tensor& y, const Tensor& w, const Tensor& edges, const Tensor& pairs,
                const Tensor& paths, const Tensor& terms, const Tensor& coefficients) {
  const Sizes s = check(x, y, w, edges);
  const Tables tables(pairs, paths, terms, coefficients);
  const int64_t *centre = edges.const_data_ptr<int64_t>(), *neighbour = centre + s.edges;
  const std::vector<int64_t> start = starts(centre, neighbour, s);
  Tensor a = at::empty({s.atoms, tables.n_rows, s.channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *py = y.const_data_ptr<scalar_t>();
    const scalar_t* pw = w.const_data_ptr<scalar_t>();
    scalar_t* pa = a.mutable_data_ptr<scalar_t>();
    using Block = Lanes<scalar_t>::type;
    at::parallel_for(0, s.atoms, 16, [&](int64_t from, int64_t to) {
      std::vector<scalar_t> t;
      std::vector<Block> sums(tables.n_rows), xs(s.components);
      for (int64_t i = from; i < to; ++i) {
        const int64_t n_edges = start[i + 1] - start[i];
        t.resize(n_edges * tables.n_pairs);
        for (int64_t e = 0; e < n_edges; ++e)
          mix(t.data() + e * tables.n_pairs, py + (start[i] + e) * s.harmonics, tables);
        for (int64_t f = 0; f < s.channels; f += kWidth) {
          const int n = width(s.channels, f);
          std::fill(sums.begin(), sums.end(), Block{});
          for (int64_t e = 0; e < n_edges; ++e) {
            const int64_t edge = start[i] + e;
            const scalar_t* te = t.data() + e * tables.n_pairs;
            for (int64_t c = 0; c < s.components; ++c)
              xs[c] = load(px + (neighbour[edge] * s.components + c) * s.channels + f, n);
            for (int64_t r = 0; r < tables.n_rows; ++r) {
              Block product = {};
              for (int64_t k = tables.first[r]; k < tables.first[r + 1]; ++k)
                product += te[k] * xs[tables.component[k]];
              sums[r] += load(pw + (edge * s.paths + tables.path[r]) * s.channels + f, n) * product;
            }
          }
          for (int64_t r = 0; r < tables.n_rows; ++r) store(pa + (i * tables.n_rows + r) * s.channels + f, sums[r], n);
        }
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
  const int64_t *centre = edges.const_data_ptr<int64_t>(), *neighbour = centre + s.edges;
  const std::vector<int64_t> start = starts(centre, neighbour, s);
  // A part of the centres for each thread, the same ones each time.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), s.atoms / 16));
  Tensor to_x = at::zeros({parts, s.atoms, s.components, s.channels}, x.options());
  Tensor to_y = at::empty_like(y), to_w = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "convolution_gradient", [&] {
    const scalar_t *px = x.const_data_ptr<scalar_t>(), *py = y.const_data_ptr<scalar_t>();
    const scalar_t *pw = w.const_data_ptr<scalar_t>(), *pg = g.const_data_ptr<scalar_t>();
    scalar_t *qx = to_x.mutable_data_ptr<scalar_t>(), *qy = to_y.mutable_data_ptr<scalar_t>();
    scalar_t* qw = to_w.mutable_data_ptr<scalar_t>();
    using Block = Lanes<scalar_t>::type;
    at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
      std::vector<scalar_t> t(tables.n_pairs);
      std::vector<Block> xs(s.components), dx(s.components), dw(s.paths), dt(tables.n_pairs);
      for (int64_t part = from; part < to; ++part) {
        scalar_t* mine = qx + part * s.atoms * s.components * s.channels;
        for (int64_t i = part * s.atoms / parts; i < (part + 1) * s.atoms / parts; ++i) {
          for (int64_t edge = start[i]; edge < start[i + 1]; ++edge) {
            mix(t.data(), py + edge * s.harmonics, tables);
            std::fill(dt.begin(), dt.end(), Block{});
            for (int64_t f = 0; f < s.channels; f += kWidth) {
              const int n = width(s.channels, f);
              for (int64_t c = 0; c < s.components; ++c)
                xs[c] = load(px + (neighbour[edge] * s.components + c) * s.channels + f, n);
              std::fill(dw.begin(), dw.end(), Block{});
              const OneBlock<scalar_t> block{tables, t.data(), xs.data(), dx.data(), dt.data(), dw.data(),
                                             pg + i * tables.n_rows * s.channels + f,
                                             pw + edge * s.paths * s.channels + f, s.channels, n};
              for (size_t q = 0; q < tables.order.size();) {
                switch (tables.count(tables.order[q])) { // components of features of degree 0 to 3
                case 1: q = block.template rows<1>(q); break;
                case 3: q = block.template rows<3>(q); break;
                case 5: q = block.template rows<5>(q); break;
                default: q = block.template rows<7>(q);
                }
              }
              for (int64_t p = 0; p < s.paths; ++p) store(qw + (edge * s.paths + p) * s.channels + f, dw[p], n);
              for (int64_t c = 0; c < s.components; ++c) {
                scalar_t* of_neighbour = mine + (neighbour[edge] * s.components + c) * s.channels + f;
                store(of_neighbour, load(of_neighbour, n) + dx[c], n);
              }
            }
            for (int64_t k = 0; k < tables.n_pairs; ++k) t[k] = sum<scalar_t>(dt[k]);
            scalar_t* dy = qy + edge * s.harmonics;
            for (int64_t h = 0; h < s.harmonics; ++h) dy[h] = 0;
            for (int64_t q = 0; q < tables.n_terms; ++q)
              dy[tables.term_harmonic[q]] += static_cast<scalar_t>(tables.coefficient[q]) * t[tables.term_pair[q]];
          }
        }
      }
    });
  });
  return {parts == 1 ? to_x.squeeze(0) : to_x.sum(0), to_y, to_w};
}

} // namespace

TORCH_LIBRARY(ggnn_ff_convolution, library) {
  library.def("convolve(Tensor x, Tensor y, Tensor w, Tensor edges, Tensor pairs, Tensor paths, Tensor terms, "
              "Tensor coefficients) -> Tensor");
  library.def("gradient(Tensor g, Tensor x, Tensor y, Tensor w, Tensor edges, Tensor pairs, Tensor paths, "
              "Tensor terms, Tensor coefficients) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(ggnn_ff_convolution, CPU, library) {
  library.impl("convolve", convolve);
  library.impl("gradient", gradient);
}
