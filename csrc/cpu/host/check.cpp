#include "check.h"

#include <c10/util/Exception.h>

namespace d2llm {
namespace {

// Where a caller of an operator gives None for a tensor, an undefined one arrives.
void expect_defined(const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.defined(), name, ": expected a tensor, got None");
}

void expect_rows(const at::Tensor& tensor, const char* name) {
    expect_defined(tensor, name);
    const auto type = tensor.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, name, ": expected float32 or bfloat16, got ", type);
}

}  // namespace

void expect_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes) {
    expect_defined(tensor, name);
    TORCH_CHECK(tensor.is_cpu(), name, ": expected a CPU tensor, got one on ", tensor.device());
    bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; fits && i < sizes.size(); ++i) fits = sizes[i] < 0 || tensor.size(i) == sizes[i];
    TORCH_CHECK(fits, name, ": expected shape ", sizes, ", got ", tensor.sizes());
}

void expect(const at::Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef sizes) {
    expect_defined(tensor, name);
    TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", type, ", got ", tensor.scalar_type());
    expect_shape(tensor, name, sizes);
}

void check_pool(const at::Tensor& x, const at::Tensor& u, const std::optional<at::Tensor>& mask,
                const std::optional<at::Tensor>& offsets) {
    expect_rows(x, "x");
    expect(u, "u", x.scalar_type(), {-1, -1});
    TORCH_CHECK(u.size(1) > 0, "u: expected a width D of at least 1, got ", u.sizes());
    if (!offsets) {
        expect_shape(x, "x", {-1, -1, u.size(1)});
        if (!mask) return;
        expect(*mask, "mask", at::kBool, {x.size(0), x.size(1)});
        TORCH_CHECK(mask->is_contiguous(), "mask: expected it contiguous, got strides ", mask->strides());
        return;
    }
    TORCH_CHECK(!mask, "mask: expected none together with offsets");
    expect_shape(x, "x", {-1, u.size(1)});
    expect(*offsets, "offsets", at::kLong, {-1});
    const int64_t count = offsets->size(0);
    TORCH_CHECK(count && offsets->is_contiguous(), "offsets: expected at least one, contiguous, got ", count);
    const int64_t* at = offsets->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i)
        TORCH_CHECK(at[i] >= (i ? at[i - 1] : 0) && at[i] <= x.size(0), "offsets: expected them to rise from 0 to ",
                    x.size(0), ", got ", at[i], " at ", i);
}

void check_branch(const Branch& branch, at::ScalarType type) {
    expect_rows(branch.weight, "weight");
    expect(branch.weight, "weight", type, {-1, -1});
    const int64_t width = branch.weight.size(0);
    TORCH_CHECK(width && branch.weight.size(1) == width, "weight: expected shape (F, F), F at least 1, got ",
                branch.weight.sizes());
    expect(branch.bias, "bias", type, {width});
    expect(branch.out_weight, "out_weight", type, {1, width});
    expect(branch.out_bias, "out_bias", type, {1});
}

void check_interaction(const at::Tensor& a, const at::Tensor& b, const Branch& branch) {
    expect_defined(a, "a");
    const auto type = a.scalar_type();
    check_branch(branch, type);
    expect(a, "a", type, {-1, branch.weight.size(0)});
    expect(b, "b", type, {-1, branch.weight.size(0)});
}

void check_given(const at::Tensor& a, const at::Tensor& b) { expect_shape(b, "b", a.sizes()); }

void check_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale, int64_t width) {
    expect(a, "a", at::kFloat, {-1, width});
    expect(b, "b", at::kChar, {-1, width});
    expect(scale, "scale", at::kFloat, {b.size(0)});
}

void check_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    expect(x, "x", at::kFloat, {-1, -1, -1});
    expect(weight, "weight", at::kFloat, {x.size(0), -1, x.size(2)});
    if (bias) expect(*bias, "bias", at::kFloat, {x.size(0), weight.size(1)});
}

}  // namespace d2llm
