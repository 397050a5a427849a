// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// The kernels that every instruction set has. None of them includes anything: the target is set by now. Before them
// stand the sizes of the register tiles: D2LLM_LANES floats to a vector, kPanel rows by kColumns vectors, kTokens rows
// of tokens.

// clang-format off: each builds on those above it.
#include "vectors-inl.h"
#include "iem_strip-inl.h"
#include "iem_gradient-inl.h"
#include "iem_int8-inl.h"
#include "inner-inl.h"
#include "linear_int8-inl.h"
#include "linear_strip-inl.h"
#include "pool_chunk-inl.h"
#include "pool_f32-inl.h"
#include "pool_gradient-inl.h"
#include "softmax-inl.h"
#include "in_batch_row-inl.h"
#include "in_batch_gradient-inl.h"
#include "peaks-inl.h"
// clang-format on
