// The kernels for compute capability 9.0. Those who call them ask first whether a shape is taken; errors of CUDA are
// thrown as std::runtime_error with the kernel's name and the shape.
#pragma once

#include <atomic>

#include "../launch.h"
#include "arguments.h"

namespace d2llm {

// Whether calls go to them at all: nothing has shown yet that they are faster.
inline std::atomic<bool> hopper_wanted{false};

bool hopper_iem_scores_takes(const ScoresArguments& arguments, Element element);
bool hopper_iem_scores_fp8_takes(const Fp8ScoresArguments& arguments);
bool hopper_pool_forward_takes(const PoolArguments& arguments, Element element);

void hopper_iem_scores(const ScoresArguments& arguments, Element element, cudaStream_t stream);
void hopper_iem_scores_fp8(const Fp8ScoresArguments& arguments, cudaStream_t stream);
void hopper_pool_forward(const PoolArguments& arguments, Element element, cudaStream_t stream);

}  // namespace d2llm
