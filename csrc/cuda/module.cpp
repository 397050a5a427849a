// The Python module of the extension: importing it registers the operators; it says how it was built.

#include <pybind11/pybind11.h>

#include "hopper/launch.h"
#include "kernels.h"

namespace {

// Found by d2llm_kernels/extension.py in the file's bytes, before the library is loaded against another torch.
constexpr const char kMarker[] = "d2llm_kernels built for torch " D2LLM_TORCH_VERSION "\n";

pybind11::dict build_info() {
    pybind11::dict info;
    info["torch"] = D2LLM_TORCH_VERSION;
    info["compiler"] = D2LLM_COMPILER;
    info["architectures"] = D2LLM_ARCHITECTURES;
    info["marker"] = kMarker;
    return info;
}

pybind11::dict launches() {
    pybind11::dict counts;
    for (const d2llm::Kernel* kernel : d2llm::kernels::all) counts[kernel->name] = kernel->launches.load();
    return counts;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.doc() = "CUDA kernels of d2llm_kernels";
    m.def("build_info", &build_info, "How the library was built, and for which architectures.");
    m.def("weights_blocks", &d2llm::weights_blocks, "Blocks of the weights' kernel with one group, by F.");
    m.def("launches", &launches, "How often each kernel was launched since the library was loaded, by name.");
    m.def(
        "use_experimental", [](bool wanted) { return d2llm::hopper_wanted.exchange(wanted); },
        "Whether calls go to kernels for one GPU that have yet to prove faster; returns what held before.");
}
