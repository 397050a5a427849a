// Linear layers in whole numbers: semantics as in d2llm_kernels/rough/linear.py.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>

#include "../isa/dispatch.h"
#include "check.h"
#include "memory.h"

namespace d2llm {
namespace {

// Rows that a thread takes at a time: rounded, they stay in L2.
constexpr int64_t kRows = 96;
// Deeper sums would overflow int32.
constexpr int64_t kDeepest = 1 << 16;

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

// weight (M, K) int8 -> (panels, units, strip) int32: for each strip of outputs the units of its columns side by side.
at::Tensor pack_linear_int8(const at::Tensor& weight_) {
    expect(weight_, "weight", at::kChar, {-1, -1});
    const at::Tensor weight = weight_.contiguous();
    const Kernels& table = kernels();
    const int64_t outputs = weight.size(0), depth = weight.size(1), unit = table.unit_int8, strip = table.strip;
    TORCH_CHECK(depth && depth <= kDeepest, "weight: expected a depth of 1 to ", kDeepest, ", got ", depth);
    const int64_t units = ceil_div(depth, unit);
    at::Tensor packed = at::zeros({ceil_div(outputs, strip), units, strip}, at::kInt);
    const int8_t* from = weight.const_data_ptr<int8_t>();
    int32_t* to = packed.mutable_data_ptr<int32_t>();
    for (int64_t m = 0; m < outputs; ++m) {
        for (int64_t k = 0; k < depth; ++k) {
            const int64_t place = ((m / strip * units + k / unit) * strip + m % strip) * unit + k % unit;
            const int8_t value = from[m * depth + k];
            // Four to a unit are the unsigned side of their instruction, 128 added.
            if (unit == 4)
                reinterpret_cast<uint8_t*>(to)[place] = static_cast<uint8_t>(value + 128);
            else
                reinterpret_cast<int16_t*>(to)[place] = value;
        }
    }
    return packed;
}

// x (N, K) float, packed weights (M, K), scale (M,), bias (M,) or none -> (N, M).
at::Tensor linear_int8(const at::Tensor& x_, const at::Tensor& packed, const at::Tensor& scale_,
                       const std::optional<at::Tensor>& bias_) {
    const Kernels& table = kernels();
    expect(x_, "x", at::kFloat, {-1, -1});
    expect(scale_, "scale", at::kFloat, {-1});
    const int64_t rows = x_.size(0), depth = x_.size(1), outputs = scale_.size(0);
    const int64_t units = ceil_div(depth, table.unit_int8);
    expect(packed, "packed", at::kInt, {ceil_div(outputs, table.strip), units, table.strip});
    TORCH_CHECK(packed.is_contiguous(), "packed: expected what pack_linear_int8 returns");
    if (bias_) expect(*bias_, "bias", at::kFloat, {outputs});
    const at::Tensor x = rows_of(x_), scale = scale_.contiguous(), bias = bias_ ? bias_->contiguous() : at::Tensor();
    at::Tensor out = fresh({rows, outputs}, x.options());
    float* to = out.mutable_data_ptr<float>();
    const int64_t blocks = ceil_div(rows, kRows), panels = packed.size(0);
    // Few rows are shared out by outputs too, whole panels each.
    const int64_t wanted = ceil_div(2 * at::get_num_threads(), std::max<int64_t>(blocks, 1));
    const int64_t share = std::max<int64_t>(at::get_num_threads() > 1 ? ceil_div(panels, wanted) : panels, 1);
    const int64_t shares = ceil_div(panels, share);
    at::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<float[]> scratch(new float[(kRows + table.panel) * (units + 2)]);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t row = task / shares * kRows, first = task % shares * share * table.strip;
            table.linear_int8(
                {x.const_data_ptr<float>() + row * x.stride(0), std::min(kRows, rows - row), depth, x.stride(0),
                 reinterpret_cast<const float*>(packed.const_data_ptr<int32_t>()) + first * units,
                 scale.const_data_ptr<float>() + first, bias.defined() ? bias.const_data_ptr<float>() + first : nullptr,
                 std::min(share * table.strip, outputs - first), to + row * outputs + first, outputs, scratch.get()});
        }
    });
    return out;
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def("pack_linear_int8(Tensor weight) -> Tensor", torch::dispatch(c10::DispatchKey::CPU, d2llm::pack_linear_int8));
    m.def("linear_int8(Tensor x, Tensor packed, Tensor scale, Tensor? bias) -> Tensor",
          torch::dispatch(c10::DispatchKey::CPU, d2llm::linear_int8));
}
