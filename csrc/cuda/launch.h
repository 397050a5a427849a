// What the binding calls: one function a kernel. They check what the kernels rely on and throw std::runtime_error with
// the kernel's name and the shape where CUDA refuses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "arguments.h"

namespace d2llm {

// Rows of the workspaces that the caller provides, and blocks of a launch with one group. None of it depends on the
// GPU, so that sums are ordered alike everywhere.
int64_t slopes_tiles(const Pairs& pairs, Element element);
int64_t weights_blocks(int width);

struct InputsPlan {
    int64_t tiles, blocks;
};
InputsPlan inputs_plan(const Pairs& pairs, Element element);

struct PoolLimits {
    int forward_heads, backward_heads;  // of a launch
    int slot;                           // tokens
};
PoolLimits pool_limits(Element element);
int64_t pool_slots(const Tokens& tokens);
int64_t pool_groups(const Tokens& tokens, Element element);  // blocks of the backward that share a slice of du
int pool_splits(int width, int size);                        // of an element, in bytes
int pool_heads(int heads);                                   // rounded up: the pitch of scores

void iem_scores(const ScoresArguments& arguments, Element element, cudaStream_t stream);
void iem_slopes(const SlopesArguments& arguments, Element element, cudaStream_t stream);
void iem_inputs(const InputsArguments& arguments, Element element, cudaStream_t stream);
void iem_weights(const WeightsArguments& arguments, Element element, cudaStream_t stream);
void pool_forward(const PoolArguments& arguments, Element element, cudaStream_t stream);
void pool_backward(const PoolBackwardArguments& arguments, Element element, cudaStream_t stream);

std::string shape_of(const Pairs& pairs);
std::string shape_of(const Tokens& tokens, int heads);

}  // namespace d2llm
