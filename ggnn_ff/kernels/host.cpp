// What a host needs at each step of a compiled potential, without Python: the edges, and the package that takes them.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <optional>

namespace {

using at::Tensor;
using Listed = std::tuple<Tensor, Tensor>; // edges (2, E), sorted, and offsets (E, 3) of the neighbours' cells

constexpr int64_t kFewest = 4; // edges that a package is made for

// A package of AOTInductor on a device (-1: the one in use), for so many threads at once; others wait.
class Package : public torch::CustomClassHolder {
 public:
  const std::tuple<std::string, int64_t, int64_t> made_with;

  Package(std::string path, int64_t device, int64_t threads)
      : made_with(path, device, threads),
        loader_(path, "model", false, threads, static_cast<c10::DeviceIndex>(device)) {}

  std::vector<Tensor> run(std::vector<Tensor> inputs) {
    at::AutoDispatchBelowAutograd below; // else our operators look for a derivative, in Python
    return loader_.boxed_run(std::move(inputs));
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

// Edges of one structure that moves: listed with a margin, the skin, and used until an atom has moved half of it.
// All tensors are float64 on the processor, and contiguous; lengths in angstrom.
class Edges : public torch::CustomClassHolder {
 public:
  const std::tuple<double, double, double> made_with;

  Edges(double cutoff, double skin, double shortest)
      : made_with(cutoff, skin, shortest), cutoff_(cutoff), skin_(skin), shortest_(shortest) {}

  // The edges within the cutoff; nothing where they must be listed anew.
  std::optional<Listed> find(const Tensor& positions, const Tensor& cell) {
    TORCH_CHECK(positions.is_contiguous(), "edges: positions must be contiguous");
    const std::lock_guard<std::mutex> guard(mutex_);
    if (!holds(positions, cell)) return std::nullopt;
    return within(positions);
  }

  // What a package says of the edges within the cutoff: the energy (1), energies (N), forces (N, 3), dE/dr (E, 3),
  // edges, offsets; nothing where they must be listed anew. On the device of the numbers, but returned to the processor.
  std::optional<std::vector<Tensor>> evaluate(const c10::intrusive_ptr<Package>& package, const Tensor& positions,
                                              const Tensor& numbers, const Tensor& cell) {
    const std::optional<Listed> found = find(positions, cell);
    if (!found) return std::nullopt;
    const auto& [edges, offsets] = *found;
    std::vector<Tensor> out;
    if (numbers.is_cpu()) {
      out = package->run({positions, numbers, edges, offsets});
    } else {
      const at::Device device = numbers.device();
      out = package->run({positions.to(device), numbers, edges.to(device), offsets.to(device)});
      for (Tensor& tensor : out) tensor = tensor.to(at::kCPU);
    }
    return std::vector<Tensor>{out[0].sum(0, true), out[0], out[1], out[2], edges, offsets};
  }

  // As evaluate on the processor, for equal structures one after the other, of which each thread takes `at_once`.
  std::optional<std::vector<Tensor>> evaluate_copies(const c10::intrusive_ptr<Package>& package,
                                                     const Tensor& positions, const Tensor& numbers,
                                                     const Tensor& cell, int64_t copies, int64_t at_once) {
    const std::optional<Listed> found = find(positions, cell);
    if (!found) return std::nullopt;
    const auto& [edges, offsets] = *found;
    const int64_t n_edges = edges.size(1), *centre = edges.const_data_ptr<int64_t>();
    const int64_t n_atoms = at_once * (positions.size(0) / copies), n_parts = (copies + at_once - 1) / at_once;
    std::vector<int64_t> start; // edges of each part
    for (int64_t p = 0; p <= n_parts; ++p) start.push_back(std::lower_bound(centre, centre + n_edges, p * n_atoms) - centre);
    for (int64_t p = 0; p < n_parts; ++p)
      if (start[p + 1] - start[p] < kFewest) return evaluate(package, positions, numbers, cell);
    std::vector<Tensor> energies(n_parts), forces(n_parts), gradients(n_parts);
    at::parallel_for(0, n_parts, 1, [&](int64_t from, int64_t to) {
      for (int64_t p = from; p < to; ++p) {
        const int64_t first = p * n_atoms, last = std::min(first + n_atoms, positions.size(0));
        const std::vector<Tensor> out =
            package->run({positions.slice(0, first, last), numbers.slice(0, first, last),
                          (edges.slice(1, start[p], start[p + 1]) - first).contiguous(),
                          offsets.slice(0, start[p], start[p + 1])});
        energies[p] = out[0], forces[p] = out[1], gradients[p] = out[2];
      }
    });
    const Tensor each = at::cat(energies);
    return std::vector<Tensor>{each.sum(0, true), each, at::cat(forces), at::cat(gradients), edges, offsets};
  }

  // As find, from all pairs (P, 2) and their shifts (P, 3) within cutoff and skin.
  Listed list(const Tensor& positions, const Tensor& cell, const Tensor& pairs, const Tensor& shifts) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const Tensor both = pairs.to(at::kLong).contiguous(), cells = shifts.to(at::kDouble).contiguous();
    const int64_t* pair = both.const_data_ptr<int64_t>();
    const double* shift = cells.const_data_ptr<double>();
    const auto key = [&](int64_t e) {
      return std::make_tuple(pair[2 * e], pair[2 * e + 1], shift[3 * e], shift[3 * e + 1], shift[3 * e + 2]);
    };
    std::vector<int64_t> order(pairs.size(0));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    const Tensor sorted = at::tensor(order, at::kLong);
    edges_ = both.index_select(0, sorted).t().contiguous();
    offsets_ = at::matmul(cells.index_select(0, sorted), cell);
    positions_ = positions.clone();
    cell_ = cell.clone();
    return within(positions);
  }

 private:
  bool holds(const Tensor& positions, const Tensor& cell) const {
    if (!positions_.defined() || positions_.sizes() != positions.sizes() || !at::equal(cell_, cell)) return false;
    const double *now = positions.const_data_ptr<double>(), *then = positions_.const_data_ptr<double>();
    for (int64_t i = 0; i < positions.numel(); i += 3) {
      double square = 0.0;
      for (int a = 0; a < 3; ++a) square += (now[i + a] - then[i + a]) * (now[i + a] - then[i + a]);
      if (!(square < 0.25 * skin_ * skin_)) return false; // also where it is not a number
    }
    return true;
  }

  Listed within(const Tensor& positions) const {
    const int64_t n = edges_.size(1), *centre = edges_.const_data_ptr<int64_t>(), *neighbour = centre + n;
    const double *x = positions.const_data_ptr<double>(), *offset = offsets_.const_data_ptr<double>();
    std::vector<int64_t> chosen;
    chosen.reserve(n);
    for (int64_t e = 0; e < n; ++e) {
      double square = 0.0;
      for (int a = 0; a < 3; ++a) {
        const double d = x[3 * neighbour[e] + a] - x[3 * centre[e] + a] + offset[3 * e + a];
        square += d * d;
      }
      TORCH_CHECK_VALUE(!(square < shortest_ * shortest_), "`positions` must keep atoms apart, got atoms ", centre[e],
                        " and ", neighbour[e], " at ", std::sqrt(square), " angstrom; the structure is broken (two ",
                        "atoms on one place) or in the wrong unit of length");
      if (square < cutoff_ * cutoff_) chosen.push_back(e);
    }
    if (static_cast<int64_t>(chosen.size()) == n && n >= kFewest) return {edges_, offsets_};
    const Tensor rows = at::tensor(chosen, at::kLong);
    const Listed found{edges_.index_select(1, rows), offsets_.index_select(0, rows)};
    return static_cast<int64_t>(chosen.size()) >= kFewest ? found : with_far_ones(found, positions);
  }

  // Adds edges of twice the cutoff between the first two atoms, which add nothing to an energy.
  Listed with_far_ones(const Listed& found, const Tensor& positions) const {
    const Tensor far = 2.0 * cutoff_ * at::eye(3, at::kDouble).slice(0, 0, 2);
    const Tensor offsets = far - (positions[1] - positions[0]);
    const Tensor forth = at::tensor({0, 0, 1, 1}, at::kLong), back = at::tensor({1, 1, 0, 0}, at::kLong);
    const Tensor edges = at::cat({at::stack({forth, back}), std::get<0>(found)}, 1);
    const Tensor order = std::get<1>(edges[0].sort(true, 0, false));
    return {edges.index_select(1, order), at::cat({offsets, -offsets, std::get<1>(found)}).index_select(0, order)};
  }

  const double cutoff_, skin_, shortest_;
  std::mutex mutex_;
  Tensor edges_, offsets_, positions_, cell_; // as listed
};

} // namespace

TORCH_LIBRARY(ggnn_ff_host, library) {
  using c10::intrusive_ptr, c10::make_intrusive; // a copy is made anew: OpenMM has one for each context
  library.class_<Package>("Package")
      .def(torch::init<std::string, int64_t, int64_t>())
      .def("run", &Package::run)
      .def_pickle([](const intrusive_ptr<Package>& self) { return self->made_with; },
                  [](const std::tuple<std::string, int64_t, int64_t>& with) {
                    return make_intrusive<Package>(std::get<0>(with), std::get<1>(with), std::get<2>(with));
                  });
  library.class_<Edges>("Edges")
      .def(torch::init<double, double, double>())
      .def("find", &Edges::find)
      .def("list", &Edges::list)
      .def("evaluate", &Edges::evaluate)
      .def("evaluate_copies", &Edges::evaluate_copies)
      .def_pickle([](const intrusive_ptr<Edges>& self) { return self->made_with; },
                  [](const std::tuple<double, double, double>& with) {
                    return make_intrusive<Edges>(std::get<0>(with), std::get<1>(with), std::get<2>(with));
                  });
}
