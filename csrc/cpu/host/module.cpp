// The Python module of the extension: importing it registers the operators; it says how it was built, and measures
// what the processor can do at most.

#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <stdexcept>
#include <string>

#include "../isa/dispatch.h"

namespace {

// Found by d2llm_kernels/backends/extension.py in the file's bytes, before the library is loaded against another torch.
constexpr const char kMarker[] = "d2llm_kernels built for torch " D2LLM_TORCH_VERSION "\n";

pybind11::dict build_info() {
    pybind11::dict info;
    info["torch"] = D2LLM_TORCH_VERSION;
    info["compiler"] = D2LLM_COMPILER;
    info["flags"] = D2LLM_FLAGS;
    info["instruction_set"] = d2llm::kernels().name;
    info["available"] = d2llm::available();
    info["marker"] = kMarker;
    return info;
}

// Operations a second of all threads together, products and sums counted apart.
double peak(const std::string& kind, int64_t rounds) {
    const d2llm::Kernels& table = d2llm::kernels();
    double (*measure)(int64_t) = kind == "float32"    ? table.peak_f32
                                 : kind == "bfloat16" ? table.peak_bf16
                                 : kind == "int8"     ? table.peak_int8
                                                      : nullptr;
    if (!measure) throw std::invalid_argument("kind: expected 'float32', 'bfloat16' or 'int8', got '" + kind + "'");
    const int64_t threads = at::get_num_threads();
    double operations = 0;
    const auto start = std::chrono::steady_clock::now();
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        double own = 0;
        for (int64_t t = begin; t < end; ++t) own += measure(rounds);
        if (!begin) operations = own * threads;
    });
    return operations / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.doc() = "C++ kernels of d2llm_kernels for CPUs";
    m.def("build_info", &build_info, "How the library was built and which instruction set it runs on.");
    m.def("peak", &peak, pybind11::arg("kind"), pybind11::arg("rounds") = 2'000'000,
          pybind11::call_guard<pybind11::gil_scoped_release>(), "Operations a second of register-only arithmetic.");
}
