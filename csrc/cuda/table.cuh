// Launch configurations: every number that a measurement may change, and nothing else. None has been timed yet; they
// rest on what the compiler reports (tools/cuda_figures.py): no spills, and shared memory that 99 KiB hold, so that
// GPUs of 8.6, 8.9 and 12.0 take them too.
//
// None may depend on the batch: a text's result would then change with its neighbours.
#pragma once

#include <type_traits>

namespace d2llm {

// Warps side by side and the products of 16 x 8 of each: a tile of kRows rows and kColumns columns.
template <int WARPS_M_, int WARPS_N_, int M_, int N_>
struct Shape {
    static constexpr int kWarpsM = WARPS_M_, kWarpsN = WARPS_N_, kM = M_, kN = N_;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kRows = 16 * kM * kWarpsM, kColumns = 8 * kN * kWarpsN;
    static_assert(kN % 4 == 0);
};

// Scores and slopes: as many products as the registers of two blocks a multiprocessor hold. float32 needs more of them,
// for its operands in two parts.
template <class E>
using GridShape = Shape<2, 2, sizeof(E) == 4 ? 2 : 4, 8>;
template <class E>
using GivenShape = Shape<1, 4, sizeof(E) == 4 ? 2 : 4, 4>;
template <class E, bool GIVEN>
using PairShape = std::conditional_t<GIVEN, GivenShape<E>, GridShape<E>>;
// So that a score is the same sum in both.
static_assert(GridShape<float>::kColumns == GivenShape<float>::kColumns &&
              GridShape<short>::kColumns == GivenShape<short>::kColumns);
constexpr int kBranchStages = 2;

// Units along the depth whose products the compiler may mix. In float32 each has sums of its own, that registers have
// to hold as well: it gets one at a time.
template <class E>
constexpr int kUnrolled = sizeof(E) == 4 ? 1 : 4;

// Gradients of inputs, with the sums of two products in registers, and of weights.
template <class E>
using InputsShape = Shape<4, 2, sizeof(E) == 4 ? 1 : 2, 8>;
using WeightsShape = Shape<4, 2, 2, 8>;
constexpr int kInputsStages = 2, kWeightsStages = 2;
constexpr int kWeightsUnits = 2;  // of pairs, in a step

// Pooling: four warps a block.
constexpr int kPoolThreads = 128;
constexpr int kSlot = 64;        // tokens of a score job, 16 a warp
constexpr int kPoolTokens = 32;  // tokens of a step of a sum, one a lane of its softmax
constexpr int kPoolSlice = 512;  // bytes of the width that a sum takes, 128 a warp
constexpr int kProductStages = 3, kPoolStages = 3, kGradientStages = 2;
constexpr int kPoolLag = 64;       // score jobs between a sequence's last one and its sums
constexpr int kSplitBytes = 2048;  // of a row in a score job: enough jobs to fill a GPU with a few sequences
constexpr int kMostSplits = 8;
constexpr int kGradientBlocks = 512;  // of the backward: enough to keep a large GPU busy
// Most blocks of 16 heads in a launch.
constexpr int kForwardBlocks = 4;
template <class E>
constexpr int kBackwardBlocks = sizeof(E) == 4 ? 1 : 2;

}  // namespace d2llm
