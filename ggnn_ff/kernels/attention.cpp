// What atoms hear by the attention of the Equivariant Transformer (arXiv 2202.02541), and its gradient.
//
// s[i] = sum over edges e from i, to j, and heads:  silu(q[i] . k[j] dk[e]) v1[j] dv1[e]
// t[i, x] = sum over edges e from i, to j:  u[j, x] v2[j] dv2[e] + direction[e, x] v3[j] dv3[e]
//
// Nothing of the size edges x features is stored that is not asked for. Edges are sorted by centre; threads share the
// centres, and what they write for neighbours goes to a copy of each thread, so that sums have one order.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "edges.h"
#include "lanes.h"

namespace {

using at::Tensor;

struct Sizes {
  int64_t atoms, edges, features, heads;
};

Sizes check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& u, const Tensor& dk, const Tensor& dv,
            const Tensor& directions, const Tensor& edges, int64_t heads) {
  const int64_t n = q.size(0), f = q.size(1), e = edges.size(1);
  for (const Tensor& one : {q, k, v, u, dk, dv, directions})
    TORCH_CHECK(one.is_contiguous() && one.scalar_type() == q.scalar_type(), "attention: contiguous, of one dtype");
  TORCH_CHECK(k.numel() == n * f && v.numel() == 3 * n * f && u.numel() == 3 * n * f && dk.numel() == e * f &&
                  dv.numel() == 3 * e * f && directions.numel() == 3 * e && f % heads == 0 && edges.is_contiguous(),
              "attention: sizes do not fit");
  return {n, e, f, heads};
}

// One edge: pointers to its rows.
template <typename T> struct Edge {
  const T *q, *k, *v, *u, *dk, *dv, *direction;
};

// W features of a head beside each other; heads are made of whole blocks.
template <typename T, int W> struct Blocks {
  using Block = typename Lanes<T, W>::type;
  static Block at(const T* from) { return load<T, W>(from); }
  static void put(T* to, const Block& block) { store<T, W>(to, block); }
  static void add(T* to, const Block& block) { store<T, W>(to, at(to) + block); }

  // q . k dk over the features from `first` on, of which a head has `n`.
  static T product(const Edge<T>& edge, int64_t first, int64_t n) {
    Block sums = {};
    for (int64_t c = first; c < first + n; c += W) sums += at(edge.q + c) * at(edge.k + c) * at(edge.dk + c);
    return sum<T, W>(sums);
  }
};

// Calls f(W) with the widest block that heads of so many features are made of.
template <typename F> void with_blocks(int64_t per_head, const F& f) {
  if (per_head % kWidth == 0) f(std::integral_constant<int, kWidth>());
  else if (per_head % (kWidth / 2) == 0) f(std::integral_constant<int, kWidth / 2>());
  else f(std::integral_constant<int, 1>());
}

template <typename T> T logistic(T x) { return T(1) / (T(1) + std::exp(-x)); }

std::tuple<Tensor, Tensor> attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& u, const Tensor& dk,
                                  const Tensor& dv, const Tensor& directions, const Tensor& edges, int64_t heads) {
  const Sizes s = check(q, k, v, u, dk, dv, directions, edges, heads);
  const int64_t f = s.features, per_head = f / heads;
  const int64_t* neighbour = edges.const_data_ptr<int64_t>() + s.edges;
  const std::vector<int64_t> start = starts(edges, s.atoms);
  Tensor scalars = at::zeros_like(q), vectors = at::zeros_like(u);
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "attend", [&] {
    using T = scalar_t;
    const T *pq = q.const_data_ptr<T>(), *pk = k.const_data_ptr<T>(), *pv = v.const_data_ptr<T>();
    const T *pu = u.const_data_ptr<T>(), *pdk = dk.const_data_ptr<T>(), *pdv = dv.const_data_ptr<T>();
    const T* pd = directions.const_data_ptr<T>();
    T *ps = scalars.mutable_data_ptr<T>(), *pt = vectors.mutable_data_ptr<T>();
    with_blocks(per_head, [&](auto widest) {
      constexpr int W = decltype(widest)::value;
      using B = Blocks<T, W>;
      at::parallel_for(0, s.atoms, 16, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i)
          for (int64_t e = start[i]; e < start[i + 1]; ++e) {
            const int64_t j = neighbour[e];
            const Edge<T> edge{pq + i * f,  pk + j * f,      pv + 3 * j * f, pu + 3 * j * f,
                               pdk + e * f, pdv + 3 * e * f, pd + 3 * e};
            T *si = ps + i * f, *ti = pt + 3 * i * f;
            for (int64_t first = 0; first < f; first += per_head) {
              const T product = B::product(edge, first, per_head), attention = product * logistic(product);
              for (int64_t c = first; c < first + per_head; c += W) {
                B::add(si + c, attention * B::at(edge.v + c) * B::at(edge.dv + c));
                const auto of_vector = B::at(edge.v + f + c) * B::at(edge.dv + f + c);
                const auto of_direction = B::at(edge.v + 2 * f + c) * B::at(edge.dv + 2 * f + c);
                for (int x = 0; x < 3; ++x)
                  B::add(ti + x * f + c, B::at(edge.u + x * f + c) * of_vector + edge.direction[x] * of_direction);
              }
            }
          }
      });
    });
  });
  return {scalars, vectors};
}

// Derivatives of gs . s + gt . t with respect to q, k, v, u, dk, dv and the directions.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
gradient(const Tensor& gs, const Tensor& gt, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& u,
         const Tensor& dk, const Tensor& dv, const Tensor& directions, const Tensor& edges, int64_t heads) {
  const Sizes s = check(q, k, v, u, dk, dv, directions, edges, heads);
  TORCH_CHECK(gs.is_contiguous() && gt.is_contiguous() && gs.numel() == q.numel() && gt.numel() == u.numel(),
              "attention: wrong gradient");
  const int64_t f = s.features, per_head = f / heads;
  const int64_t* neighbour = edges.const_data_ptr<int64_t>() + s.edges;
  const std::vector<int64_t> start = starts(edges, s.atoms);
  const int64_t parts = parts_of(s.atoms); // of the centres, the same ones each time
  Tensor to_q = at::zeros_like(q), to_k = at::zeros({parts, s.atoms, f}, q.options());
  Tensor to_v = at::zeros({parts, s.atoms, 3 * f}, q.options()), to_u = at::zeros({parts, s.atoms, 3, f}, q.options());
  Tensor to_dk = at::empty_like(dk), to_dv = at::empty_like(dv), to_directions = at::empty_like(directions);
  AT_DISPATCH_FLOATING_TYPES(q.scalar_type(), "attend_gradient", [&] {
    using T = scalar_t;
    const T *pq = q.const_data_ptr<T>(), *pk = k.const_data_ptr<T>(), *pv = v.const_data_ptr<T>();
    const T *pu = u.const_data_ptr<T>(), *pdk = dk.const_data_ptr<T>(), *pdv = dv.const_data_ptr<T>();
    const T *pd = directions.const_data_ptr<T>(), *pgs = gs.const_data_ptr<T>(), *pgt = gt.const_data_ptr<T>();
    T *rq = to_q.mutable_data_ptr<T>(), *rk = to_k.mutable_data_ptr<T>();
    T *rv = to_v.mutable_data_ptr<T>(), *ru = to_u.mutable_data_ptr<T>();
    T *rdk = to_dk.mutable_data_ptr<T>(), *rdv = to_dv.mutable_data_ptr<T>();
    T* rd = to_directions.mutable_data_ptr<T>();
    with_blocks(per_head, [&](auto widest) {
      constexpr int W = decltype(widest)::value;
      using B = Blocks<T, W>;
      at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
        for (int64_t part = from; part < to; ++part)
          for (int64_t i = part * s.atoms / parts; i < (part + 1) * s.atoms / parts; ++i)
            for (int64_t e = start[i]; e < start[i + 1]; ++e) {
              const int64_t j = neighbour[e], mine = part * s.atoms + j;
              const Edge<T> edge{pq + i * f,  pk + j * f,      pv + 3 * j * f, pu + 3 * j * f,
                                 pdk + e * f, pdv + 3 * e * f, pd + 3 * e};
              const T *gsi = pgs + i * f, *gti = pgt + 3 * i * f;
              T *qi = rq + i * f, *kj = rk + mine * f, *vj = rv + 3 * mine * f, *uj = ru + 3 * mine * f;
              T *dke = rdk + e * f, *dve = rdv + 3 * e * f;
              typename B::Block along[3] = {};
              for (int64_t first = 0; first < f; first += per_head) {
                const T product = B::product(edge, first, per_head), weight = logistic(product);
                const T attention = product * weight;
                typename B::Block heard = {};
                for (int64_t c = first; c < first + per_head; c += W) {
                  const auto g = B::at(gsi + c), value = B::at(edge.v + c), filter = B::at(edge.dv + c);
                  heard += g * value * filter;
                  B::add(vj + c, attention * g * filter);
                  B::put(dve + c, attention * g * value);
                  const auto v2 = B::at(edge.v + f + c), v3 = B::at(edge.v + 2 * f + c);
                  const auto dv2 = B::at(edge.dv + f + c), dv3 = B::at(edge.dv + 2 * f + c);
                  const auto of_vector = v2 * dv2, of_direction = v3 * dv3;
                  typename B::Block on_vector = {}, on_direction = {};
                  for (int x = 0; x < 3; ++x) {
                    const auto gx = B::at(gti + x * f + c);
                    on_vector += gx * B::at(edge.u + x * f + c);
                    on_direction += gx * edge.direction[x];
                    along[x] += gx * of_direction;
                    B::add(uj + x * f + c, gx * of_vector);
                  }
                  B::add(vj + f + c, on_vector * dv2);
                  B::add(vj + 2 * f + c, on_direction * dv3);
                  B::put(dve + f + c, on_vector * v2);
                  B::put(dve + 2 * f + c, on_direction * v3);
                }
                const T slope = sum<T, W>(heard) * weight * (T(1) + product * (T(1) - weight));
                for (int64_t c = first; c < first + per_head; c += W) {
                  const auto query = B::at(edge.q + c), key = B::at(edge.k + c), filter = B::at(edge.dk + c);
                  B::add(qi + c, slope * key * filter);
                  B::add(kj + c, slope * query * filter);
                  B::put(dke + c, slope * query * key);
                }
              }
              for (int x = 0; x < 3; ++x) rd[3 * e + x] = sum<T, W>(along[x]);
            }
      });
    });
  });
  const auto all = [&](const Tensor& of_parts) { return parts == 1 ? of_parts.squeeze(0) : of_parts.sum(0); };
  return {to_q, all(to_k), all(to_v), all(to_u), to_dk, to_dv, to_directions};
}

} // namespace

TORCH_LIBRARY(ggnn_ff_attention, library) {
  library.def("attend(Tensor q, Tensor k, Tensor v, Tensor u, Tensor dk, Tensor dv, Tensor directions, Tensor edges, "
              "int heads) -> (Tensor, Tensor)");
  library.def("gradient(Tensor gs, Tensor gt, Tensor q, Tensor k, Tensor v, Tensor u, Tensor dk, Tensor dv, "
              "Tensor directions, Tensor edges, int heads) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
              "Tensor)");
}

TORCH_LIBRARY_IMPL(ggnn_ff_attention, CPU, library) {
  library.impl("attend", attend);
  library.impl("gradient", gradient);
}
