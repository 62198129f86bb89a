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
  using Block = typename Lanes<T>::type;
  const T *q, *k, *v, *u, *dk, *dv, *direction;
  int64_t f, per_head;

  // q . k dk over the features of the head that begins at `first`.
  T product(int64_t first) const {
    Block sums = {};
    for (int64_t c = first; c < first + per_head; c += kWidth) {
      const int n = width(first + per_head, c);
      sums += load(q + c, n) * load(k + c, n) * load(dk + c, n);
    }
    return sum<T>(sums);
  }
};

template <typename T> T logistic(T x) { return T(1) / (T(1) + std::exp(-x)); }

template <typename T> void add(T* to, const typename Lanes<T>::type& block, int n) {
  store(to, load(to, n) + block, n);
}

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
    at::parallel_for(0, s.atoms, 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        for (int64_t e = start[i]; e < start[i + 1]; ++e) {
          const int64_t j = neighbour[e];
          const Edge<T> edge{pq + i * f,  pk + j * f,      pv + 3 * j * f, pu + 3 * j * f,
                             pdk + e * f, pdv + 3 * e * f, pd + 3 * e,     f, per_head};
          T *si = ps + i * f, *ti = pt + 3 * i * f;
          for (int64_t first = 0; first < f; first += per_head) {
            const T product = edge.product(first), attention = product * logistic(product);
            for (int64_t c = first; c < first + per_head; c += kWidth) {
              const int n = width(first + per_head, c);
              add(si + c, attention * load(edge.v + c, n) * load(edge.dv + c, n), n);
              const auto of_vector = load(edge.v + f + c, n) * load(edge.dv + f + c, n);
              const auto of_direction = load(edge.v + 2 * f + c, n) * load(edge.dv + 2 * f + c, n);
              for (int x = 0; x < 3; ++x)
                add(ti + x * f + c, load(edge.u + x * f + c, n) * of_vector + edge.direction[x] * of_direction, n);
            }
          }
        }
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
    using Block = typename Lanes<T>::type;
    const T *pq = q.const_data_ptr<T>(), *pk = k.const_data_ptr<T>(), *pv = v.const_data_ptr<T>();
    const T *pu = u.const_data_ptr<T>(), *pdk = dk.const_data_ptr<T>(), *pdv = dv.const_data_ptr<T>();
    const T *pd = directions.const_data_ptr<T>(), *pgs = gs.const_data_ptr<T>(), *pgt = gt.const_data_ptr<T>();
    T *rq = to_q.mutable_data_ptr<T>(), *rk = to_k.mutable_data_ptr<T>();
    T *rv = to_v.mutable_data_ptr<T>(), *ru = to_u.mutable_data_ptr<T>();
    T *rdk = to_dk.mutable_data_ptr<T>(), *rdv = to_dv.mutable_data_ptr<T>();
    T* rd = to_directions.mutable_data_ptr<T>();
    at::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
      for (int64_t part = from; part < to; ++part)
        for (int64_t i = part * s.atoms / parts; i < (part + 1) * s.atoms / parts; ++i)
          for (int64_t e = start[i]; e < start[i + 1]; ++e) {
            const int64_t j = neighbour[e], mine = part * s.atoms + j;
            const Edge<T> edge{pq + i * f,  pk + j * f,      pv + 3 * j * f, pu + 3 * j * f,
                               pdk + e * f, pdv + 3 * e * f, pd + 3 * e,     f, per_head};
            const T *gsi = pgs + i * f, *gti = pgt + 3 * i * f;
            T *qi = rq + i * f, *kj = rk + mine * f, *vj = rv + 3 * mine * f, *uj = ru + 3 * mine * f;
            T *dke = rdk + e * f, *dve = rdv + 3 * e * f;
            Block along[3] = {};
            for (int64_t first = 0; first < f; first += per_head) {
              const T product = edge.product(first), weight = logistic(product), attention = product * weight;
              Block heard = {};
              for (int64_t c = first; c < first + per_head; c += kWidth) {
                const int n = width(first + per_head, c);
                const Block g = load(gsi + c, n), value = load(edge.v + c, n), filter = load(edge.dv + c, n);
                heard += g * value * filter;
                add(vj + c, attention * g * filter, n);
                store(dve + c, attention * g * value, n);
                const Block v2 = load(edge.v + f + c, n), v3 = load(edge.v + 2 * f + c, n);
                const Block dv2 = load(edge.dv + f + c, n), dv3 = load(edge.dv + 2 * f + c, n);
                const Block of_vector = v2 * dv2, of_direction = v3 * dv3;
                Block on_vector = {}, on_direction = {};
                for (int x = 0; x < 3; ++x) {
                  const Block gx = load(gti + x * f + c, n);
                  on_vector += gx * load(edge.u + x * f + c, n);
                  on_direction += gx * edge.direction[x];
                  along[x] += gx * of_direction;
                  add(uj + x * f + c, gx * of_vector, n);
                }
                add(vj + f + c, on_vector * dv2, n);
                add(vj + 2 * f + c, on_direction * dv3, n);
                store(dve + f + c, on_vector * v2, n);
                store(dve + 2 * f + c, on_direction * v3, n);
              }
              const T slope = sum<T>(heard) * weight * (T(1) + product * (T(1) - weight));
              for (int64_t c = first; c < first + per_head; c += kWidth) {
                const int n = width(first + per_head, c);
                const Block query = load(edge.q + c, n), key = load(edge.k + c, n), filter = load(edge.dk + c, n);
                add(qi + c, slope * key * filter, n);
                add(kj + c, slope * query * filter, n);
                store(dke + c, slope * query * key, n);
              }
            }
            for (int x = 0; x < 3; ++x) rd[3 * e + x] = sum<T>(along[x]);
          }
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
