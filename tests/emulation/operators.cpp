// The operators of csrc/cuda on tensors of the CPU: they run what is registered for CUDA, which was linked before.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace {

void run_as_cuda(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CUDA), stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(d2llm_cuda, CPU, m) {
    for (const auto& op : c10::Dispatcher::singleton().getRegistrationsForDispatchKey(c10::DispatchKey::CUDA))
        if (op.getNamespace() == "d2llm_cuda")
            m.impl(op.name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_as_cuda>());
}
