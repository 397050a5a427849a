// What the kernels rely on, checked where a call comes in, because they cannot: shapes, dtypes, offsets and k. The
// package has looked before; who calls the operators by themselves has not.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "pack.h"

namespace d2llm {

// A CPU tensor of this shape, in which -1 stands for any size; with a type, of this dtype too.
void expect_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef sizes);
void expect(const at::Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef sizes);

// x (B, L, D) or, with offsets, (T, D) and u (H, D), float or bfloat16; a mask or offsets as `Sequences` reads them.
void check_pool(const at::Tensor& x, const at::Tensor& u, const std::optional<at::Tensor>& mask,
                const std::optional<at::Tensor>& offsets);

// A branch of this dtype, float or bfloat16.
void check_branch(const Branch& branch, at::ScalarType type);

// Rows a and b (N, F) for a branch, all of one dtype.
void check_interaction(const at::Tensor& a, const at::Tensor& b, const Branch& branch);

// As many rows of a as of b.
void check_given(const at::Tensor& a, const at::Tensor& b);

// Rows a (Nq, F) float, b (Np, F) int8 and scale (Np,) float.
void check_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale, int64_t width);

void check_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

}  // namespace d2llm
