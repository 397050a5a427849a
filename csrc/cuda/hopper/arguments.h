// Arguments of the kernels that only Hopper has.
#pragma once

#include "../arguments.h"

namespace d2llm {

// Scores with the square layer in e4m3. a, b, bias, out_weight and out_bias are bfloat16; scores.branch.weight holds
// e4m3 elements, of which row n times weight_scale[n] is row n of W; its stride counts elements, here bytes.
//
// No scale of h is asked for. The kernel takes the largest element of each pair's h = relu(a + b), which is exact, and
// scales the pair by the largest power of two that keeps it within 448, the largest e4m3 number. So no element
// saturates and scaling rounds nothing. A pair whose h is infinite scores NaN, rather than what a clipped h would give.
struct Fp8ScoresArguments {
    ScoresArguments scores;
    const float* weight_scale;  // (F,)
};

}  // namespace d2llm
