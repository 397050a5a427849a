// Linear layers in float32: shapes and semantics as in d2llm_kernels/operators/linear.py.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>

#include "../isa/dispatch.h"
#include "check.h"
#include "memory.h"

namespace d2llm {
namespace {

// Outputs that a thread makes of a strip at a time: beside the terms of the strip, their sums stay in L2.
constexpr int64_t kOutputs = 512;

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

at::Tensor lines_of(const at::Tensor& tensor) {
    return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace

// x (G, N, K), weight (G, M, K), bias (G, M) or none -> (G, N, M).
at::Tensor linear(const at::Tensor& x_, const at::Tensor& weight_, const std::optional<at::Tensor>& bias_) {
    check_linear(x_, weight_, bias_);
    const at::Tensor x = lines_of(x_), weight = lines_of(weight_);
    const at::Tensor bias = bias_ ? bias_->contiguous() : at::Tensor();
    const Kernels& table = kernels();
    const int64_t groups = x.size(0), rows = x.size(1), depth = x.size(2), outputs = weight.size(1);
    at::Tensor out = fresh({groups, rows, outputs}, x.options());
    float* to = out.mutable_data_ptr<float>();
    const int64_t strips = ceil_div(rows, table.strip);
    // Few strips are shared out by outputs too, whole panels each.
    const int64_t wanted = ceil_div(2 * at::get_num_threads(), std::max<int64_t>(groups * strips, 1));
    const int64_t share = std::min(ceil_div(ceil_div(outputs, wanted), table.panel) * table.panel, kOutputs);
    const int64_t blocks = ceil_div(outputs, std::max<int64_t>(share, 1));
    at::parallel_for(0, groups * strips * blocks, 1, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<float[]> scratch(new float[(kLinearDepth + share) * table.strip]);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t group = task / (strips * blocks), block = task % blocks;
            const int64_t row = task / blocks % strips * table.strip, first = block * share;
            table.linear({x.const_data_ptr<float>() + group * x.stride(0) + row * x.stride(1),
                          std::min(table.strip, rows - row), depth, x.stride(1),
                          weight.const_data_ptr<float>() + group * weight.stride(0) + first * weight.stride(1),
                          std::min(share, outputs - first), weight.stride(1),
                          bias.defined() ? bias.const_data_ptr<float>() + group * outputs + first : nullptr,
                          to + (group * rows + row) * outputs + first, outputs, scratch.get()});
        }
    });
    return out;
}

}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
          torch::dispatch(c10::DispatchKey::CPU, d2llm::linear));
}
