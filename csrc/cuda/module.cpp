// The Python module of the extension: importing it registers the operators; it says how it was built.

#include <pybind11/pybind11.h>

namespace {

// Found by d2llm_kernels/extension.py in the file's bytes, before the library is loaded against another torch.
constexpr const char kMarker[] = "d2llm_kernels built for torch " D2LLM_TORCH_VERSION "\n";

pybind11::dict build_info() {
    pybind11::dict info;
    info["torch"] = D2LLM_TORCH_VERSION;
    info["compiler"] = D2LLM_COMPILER;
    info["architectures"] = D2LLM_ARCHITECTURES;
#ifdef D2LLM_EMULATED
    info["emulated"] = true;
#else
    info["emulated"] = false;
#endif
    info["marker"] = kMarker;
    return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.doc() = "CUDA kernels of d2llm_kernels";
    m.def("build_info", &build_info, "How the library was built, and for which architectures.");
}
