// Edges sorted by centre, as kernels go over them.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

// The first edge of each centre, and the end.
inline std::vector<int64_t> starts(const at::Tensor& edges, int64_t atoms) {
  TORCH_CHECK(edges.dim() == 2 && edges.size(0) == 2 && edges.is_contiguous(), "edges: wrong shape");
  const int64_t n = edges.size(1), *centre = edges.const_data_ptr<int64_t>(), *neighbour = centre + n;
  std::vector<int64_t> start(atoms + 1, 0);
  for (int64_t e = 0; e < n; ++e) {
    TORCH_CHECK(0 <= centre[e] && centre[e] < atoms && 0 <= neighbour[e] && neighbour[e] < atoms,
                "edges: an edge of an atom that is not there");
    TORCH_CHECK(e == 0 || centre[e - 1] <= centre[e], "edges: edges must be sorted by centre");
    ++start[centre[e] + 1];
  }
  for (int64_t i = 0; i < atoms; ++i) start[i + 1] += start[i];
  return start;
}

// How many parts of the centres threads work on, the same ones each time.
inline int64_t parts_of(int64_t atoms) {
  if (at::in_parallel_region()) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), atoms / 16));
}
