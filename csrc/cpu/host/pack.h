// Weights and rows in the form that the kernels read.
#pragma once

#include <ATen/core/Tensor.h>

#include "../isa/kernels.h"

namespace d2llm {

// Weights of one branch of the IEM, by reference: they live as long as the call that they came with.
struct Branch {
    const at::Tensor& weight;      // (F, F)
    const at::Tensor& bias;        // (F,)
    const at::Tensor& out_weight;  // (1, F)
    const at::Tensor& out_bias;    // (1,)
};

// A branch and the memory behind it.
struct PackedBranch {
    at::Tensor weight, bias, out, scale;
    BranchView view;
};

// Of weights in float or bfloat16, for products with rows of that kind.
PackedBranch pack(const Kernels&, Rows, const Branch& branch);

// The same in float, with each row of the weight rounded to whole steps of 1/127 of its largest value.
PackedBranch pack_int8(const Kernels&, const Branch& branch);

// The transposed weight in panels like those of `pack`, for the backward.
at::Tensor pack_transposed(const Kernels&, Rows, const at::Tensor& weight);

// Units of D in a slab of packed queries.
int64_t slab_of(int64_t width, int64_t unit);

// Queries u (H, D) of the kind of the rows, as Kernels::products reads them.
at::Tensor pack_queries(const Kernels&, Rows, const void* u, int64_t heads, int64_t width);

// Both sides of the gradients of tokens, u and dP (H, D) of the kind `rows`, in `sides` (2 H, stride) of zeros: first
// those of u, then those of dP, as floats; or, in units of two, each value of u beside that of dP.
void pack_sides(const void* u, const void* dpooled, Rows rows, int64_t heads, int64_t width, int64_t unit,
                int64_t stride, float* sides);

// (N, F) with the values of a row side by side; a copy only where they are not.
at::Tensor rows_of(const at::Tensor& tensor);

inline Rows rows_kind(const at::Tensor& tensor) { return tensor.scalar_type() == at::kFloat ? Rows::f32 : Rows::bf16; }

inline const char* row_of(const at::Tensor& tensor, int64_t i) {
    return static_cast<const char*>(tensor.const_data_ptr()) + i * tensor.stride(0) * tensor.element_size();
}

}  // namespace d2llm
