// The kernels that every instruction set has. Included inside the namespace of one, after the sizes of its register
// tiles: D2LLM_LANES floats to a vector, kPanel rows by kColumns vectors, kTokens rows of tokens.

// clang-format off: each builds on those above it.
#include "vectors.h"
#include "iem_strip.h"
#include "iem_gradient.h"
#include "iem_int8.h"
#include "linear_strip.h"
#include "pool_chunk.h"
#include "pool_f32.h"
#include "pool_gradient.h"
#include "softmax.h"
#include "in_batch_row.h"
#include "in_batch_gradient.h"
#include "peaks.h"
// clang-format on
