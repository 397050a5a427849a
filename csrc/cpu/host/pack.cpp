#include "pack.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace d2llm {
namespace {

constexpr int64_t kSlabUnits = 576;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// (panels, units, panel, kUnit) of T from rows of `source` (F, F) with strides, in the order of `to`. What lies past F
// is left as it is.
template <int kUnit, class S, class T>
void fill_panels(const S* source, int64_t row, int64_t column, int64_t features, int64_t panel, T* to) {
    const int64_t units = (features + kUnit - 1) / kUnit, panels = (features + panel - 1) / panel;
    at::parallel_for(0, panels, 1, [=](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const int64_t rows = std::min(panel, features - p * panel);
            const S* from = source + p * panel * row;
            T* at = to + p * panel * units * kUnit;
            for (int64_t u = 0; u < units; ++u, at += panel * kUnit)
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t i = 0, k = u * kUnit; i < kUnit && k < features; ++i, ++k)
                        at[r * kUnit + i] = static_cast<T>(from[r * row + k * column]);
        }
    });
}

// to (count,) = the values from `first` on.
void widen(const void* values, Rows rows, int64_t first, int64_t count, float* to) {
    if (rows == Rows::f32)
        std::copy_n(static_cast<const float*>(values) + first, count, to);
    else
        std::copy_n(static_cast<const at::BFloat16*>(values) + first, count, to);
}

at::Tensor padded(const at::Tensor& values, int64_t length) {
    at::Tensor out = at::zeros({length}, at::kFloat);
    out.narrow(0, 0, values.numel()).copy_(values.reshape(-1));
    return out;
}

// Rows of the weight (F, F), changed to whole steps of their scales. A row that holds NaN or infinity has such a scale.
void round_rows(int64_t features, float* weight, float* scale) {
    for (int64_t n = 0; n < features; ++n, weight += features) {
        float top = 0, poison = 0;
        for (int64_t k = 0; k < features; ++k) {
            top = std::max(top, std::abs(weight[k]));
            poison += weight[k] * 0;
        }
        scale[n] = top / 127 + poison;
        for (int64_t k = 0; k < features; ++k)
            weight[k] = scale[n] > 0 && std::isfinite(scale[n]) ? std::nearbyint(weight[k] / scale[n]) : 0;
    }
}

}  // namespace

PackedBranch pack(const Kernels& kernels, Rows rows, const Branch& branch) {
    const int64_t features = branch.weight.size(0), panel = kernels.panel, length = round_up(features, panel);
    PackedBranch packed;
    packed.bias = padded(branch.bias, length);
    packed.out = padded(branch.out_weight, length);
    const int64_t unit = rows == Rows::f32 ? 1 : kernels.unit_bf16;
    const int64_t units = (features + unit - 1) / unit;
    // A unit is 32 bits, whatever it holds.
    packed.weight = at::zeros({length * units}, at::kFloat);
    float* to = packed.weight.mutable_data_ptr<float>();
    if (unit == 2) {
        const at::Tensor half = branch.weight.contiguous();
        fill_panels<2>(static_cast<const uint16_t*>(half.const_data_ptr()), features, 1, features, panel,
                       reinterpret_cast<uint16_t*>(to));
    } else {
        const at::Tensor wide = branch.weight.to(at::kFloat).contiguous();
        fill_panels<1>(wide.const_data_ptr<float>(), features, 1, features, panel, to);
    }
    packed.view = {features,
                   packed.weight.const_data_ptr(),
                   packed.bias.const_data_ptr<float>(),
                   packed.out.const_data_ptr<float>(),
                   nullptr,
                   branch.out_bias.item().toFloat()};
    return packed;
}

PackedBranch pack_int8(const Kernels& kernels, const Branch& branch) {
    const int64_t features = branch.weight.size(0), panel = kernels.panel, unit = kernels.unit_int8;
    const int64_t length = round_up(features, panel);
    PackedBranch packed;
    packed.bias = padded(branch.bias, length);
    packed.out = padded(branch.out_weight, length);
    packed.scale = at::zeros({length}, at::kFloat);
    packed.weight = at::zeros({length * round_up(features, unit) / unit}, at::kFloat);
    at::Tensor whole = branch.weight.contiguous().clone();
    float* rows = whole.mutable_data_ptr<float>();
    round_rows(features, rows, packed.scale.mutable_data_ptr<float>());
    float* to = packed.weight.mutable_data_ptr<float>();
    if (unit == 4)
        fill_panels<4>(rows, features, 1, features, panel, reinterpret_cast<int8_t*>(to));
    else
        fill_panels<2>(rows, features, 1, features, panel, reinterpret_cast<int16_t*>(to));
    packed.view = {features,
                   to,
                   packed.bias.const_data_ptr<float>(),
                   packed.out.const_data_ptr<float>(),
                   packed.scale.const_data_ptr<float>(),
                   branch.out_bias.item().toFloat()};
    return packed;
}

at::Tensor pack_transposed(const Kernels& kernels, Rows rows, const at::Tensor& weight) {
    const int64_t features = weight.size(0), panel = kernels.panel, unit = rows == Rows::f32 ? 1 : kernels.unit_bf16;
    at::Tensor packed = at::zeros({round_up(features, panel) * (round_up(features, unit) / unit)}, at::kFloat);
    float* to = packed.mutable_data_ptr<float>();
    if (unit == 2) {
        const at::Tensor half = weight.contiguous();
        fill_panels<2>(static_cast<const uint16_t*>(half.const_data_ptr()), 1, features, features, panel,
                       reinterpret_cast<uint16_t*>(to));
    } else {
        const at::Tensor wide = weight.to(at::kFloat).contiguous();
        fill_panels<1>(wide.const_data_ptr<float>(), 1, features, features, panel, to);
    }
    return packed;
}

// As few slabs of equal length as let those of nine heads fit L1 (32 KB) beside the tokens.
int64_t slab_of(int64_t width, int64_t unit) {
    const int64_t units = (width + unit - 1) / unit,
                  slabs = std::max<int64_t>((units + kSlabUnits - 1) / kSlabUnits, 1);
    return std::max<int64_t>(round_up((units + slabs - 1) / slabs, 16), 16);
}

at::Tensor pack_queries(const Kernels& kernels, Rows rows, const void* u, int64_t heads, int64_t width) {
    const int64_t unit = rows == Rows::f32 ? 1 : kernels.unit_bf16, slab = slab_of(width, unit);
    const int64_t slabs = ((width + unit - 1) / unit + slab - 1) / slab;
    at::Tensor packed = at::empty({slabs * heads * slab}, at::kFloat);
    kernels.pack_queries(rows, u, heads, width, slab, packed.mutable_data_ptr<float>());
    return packed;
}

void pack_sides(const void* u, const void* dpooled, Rows rows, int64_t heads, int64_t width, int64_t unit,
                int64_t stride, float* sides) {
    for (int64_t h = 0; h < heads; ++h) {
        if (unit == 2) {
            uint16_t* to = reinterpret_cast<uint16_t*>(sides + h * stride);
            const uint16_t* low = static_cast<const uint16_t*>(u) + h * width;
            const uint16_t* high = static_cast<const uint16_t*>(dpooled) + h * width;
            for (int64_t d = 0; d < width; ++d) {
                to[2 * d] = low[d];
                to[2 * d + 1] = high[d];
            }
        } else {
            widen(u, rows, h * width, width, sides + h * stride);
            widen(dpooled, rows, h * width, width, sides + (heads + h) * stride);
        }
    }
}

at::Tensor rows_of(const at::Tensor& tensor) {
    return tensor.size(1) <= 1 || tensor.stride(1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace d2llm
