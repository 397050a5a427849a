#include "pack.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace d2llm {
namespace {

constexpr int64_t kSlabUnits = 576;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// (panels, units, panel, unit) of T from rows of `source` (F, F) with strides.
template <class S, class T>
void fill_panels(const S* source, int64_t row, int64_t column, int64_t features, int64_t panel, int64_t unit, T* to) {
    const int64_t units = (features + unit - 1) / unit;
    for (int64_t n = 0; n < features; ++n) {
        T* at = to + (n / panel * units * panel + n % panel) * unit;
        for (int64_t k = 0; k < features; ++k)
            at[k / unit * panel * unit + k % unit] = static_cast<T>(source[n * row + k * column]);
    }
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

PackedBranch pack(const Kernels& kernels, Rows rows, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& out_weight, const at::Tensor& out_bias) {
    const int64_t features = weight.size(0), panel = kernels.panel, length = round_up(features, panel);
    PackedBranch packed;
    packed.bias = padded(bias, length);
    packed.out = padded(out_weight, length);
    const int64_t unit = rows == Rows::f32 ? 1 : kernels.unit_bf16;
    const int64_t units = (features + unit - 1) / unit;
    // A unit is 32 bits, whatever it holds.
    packed.weight = at::zeros({length * units}, at::kFloat);
    float* to = packed.weight.mutable_data_ptr<float>();
    if (unit == 2) {
        const at::Tensor half = weight.contiguous();
        fill_panels(static_cast<const uint16_t*>(half.const_data_ptr()), features, 1, features, panel, unit,
                    reinterpret_cast<uint16_t*>(to));
    } else {
        const at::Tensor wide = weight.to(at::kFloat).contiguous();
        fill_panels(wide.const_data_ptr<float>(), features, 1, features, panel, unit, to);
    }
    packed.view = {features,
                   packed.weight.const_data_ptr(),
                   packed.bias.const_data_ptr<float>(),
                   packed.out.const_data_ptr<float>(),
                   nullptr,
                   out_bias.item().toFloat()};
    return packed;
}

PackedBranch pack_int8(const Kernels& kernels, const at::Tensor& weight, const at::Tensor& bias,
                       const at::Tensor& out_weight, const at::Tensor& out_bias) {
    const int64_t features = weight.size(0), panel = kernels.panel, unit = kernels.unit_int8;
    const int64_t length = round_up(features, panel);
    PackedBranch packed;
    packed.bias = padded(bias, length);
    packed.out = padded(out_weight, length);
    packed.scale = at::zeros({length}, at::kFloat);
    packed.weight = at::zeros({length * round_up(features, unit) / unit}, at::kFloat);
    at::Tensor whole = weight.contiguous().clone();
    float* rows = whole.mutable_data_ptr<float>();
    round_rows(features, rows, packed.scale.mutable_data_ptr<float>());
    float* to = packed.weight.mutable_data_ptr<float>();
    if (unit == 4)
        fill_panels(rows, features, 1, features, panel, unit, reinterpret_cast<int8_t*>(to));
    else
        fill_panels(rows, features, 1, features, panel, unit, reinterpret_cast<int16_t*>(to));
    packed.view = {features,
                   to,
                   packed.bias.const_data_ptr<float>(),
                   packed.out.const_data_ptr<float>(),
                   packed.scale.const_data_ptr<float>(),
                   out_bias.item().toFloat()};
    return packed;
}

at::Tensor pack_transposed(const Kernels& kernels, const at::Tensor& weight) {
    const int64_t features = weight.size(0);
    at::Tensor packed = at::zeros({round_up(features, kernels.panel) * features}, at::kFloat);
    const at::Tensor wide = weight.to(at::kFloat).contiguous();
    fill_panels(wide.const_data_ptr<float>(), 1, features, features, kernels.panel, 1,
                packed.mutable_data_ptr<float>());
    return packed;
}

// As few slabs of equal length as let those of nine heads fit L1 (32 KB) beside the tokens.
int64_t slab_of(int64_t width, int64_t unit) {
    const int64_t units = (width + unit - 1) / unit,
                  slabs = std::max<int64_t>((units + kSlabUnits - 1) / kSlabUnits, 1);
    return std::max<int64_t>(round_up((units + slabs - 1) / slabs, 16), 16);
}

int64_t packed_queries_size(int64_t heads, int64_t width, int64_t unit) {
    const int64_t units = (width + unit - 1) / unit, slab = slab_of(width, unit);
    return (units + slab - 1) / slab * heads * (slab + kSlabGap);
}

void pack_queries(const void* u, Rows rows, int64_t heads, int64_t width, int64_t unit, float* packed) {
    const int64_t units = (width + unit - 1) / unit, slab = slab_of(width, unit);
    std::memset(packed, 0, sizeof(float) * packed_queries_size(heads, width, unit));
    for (int64_t begin = 0; begin < units; begin += slab) {
        const int64_t first = begin * unit, count = std::min(width - first, slab * unit);
        for (int64_t h = 0; h < heads; ++h, packed += slab + kSlabGap) {
            if (unit == 2)
                std::memcpy(packed, static_cast<const uint16_t*>(u) + h * width + first, sizeof(uint16_t) * count);
            else
                widen(u, rows, h * width + first, count, packed);
        }
    }
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
