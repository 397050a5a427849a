// What one instruction set offers: a table of kernels, the same for all, chosen once at run time.
//
// This header is included by files that are compiled for instruction sets the machine may lack, so nothing
// in it may be a function: the linker keeps one copy of an inline function, and it must not be theirs.
#pragma once

#include <cstdint>

namespace d2llm {

// How rows of activations are stored. Bfloat16 is the upper half of a float.
enum class Rows { f32, bf16 };

// Tokens in a chunk at most, and what counts of heads are rounded up to.
constexpr int64_t kMaxTokens = 128;
constexpr int64_t kHeadStride = 16;

// Terms of a linear layer's sums that are taken at a time, so that a strip's share of them stays in L2.
constexpr int64_t kLinearDepth = 512;

// Columns of a batch's row that are taken together at most.
constexpr int64_t kBatchBlock = 64;

// What the width of queries for inner products is rounded up to: the numbers in a vector at most.
constexpr int64_t kInnerPadding = 64;

// One branch of the IEM, its weights packed in panels of output features, zeros past F (host/pack.h).
struct BranchView {
    int64_t features;    // F
    const void* weight;  // (panels, units, panel, unit) float, bfloat16 or int8
    const float* bias;   // (panels * panel,)
    const float* out;    // (panels * panel,) out_weight
    const float* scale;  // (panels * panel,) of the rows of int8 weights, else null
    float out_bias;
};

// Pairs scored together, one a lane: row a[l] with row b[l]. Lanes past the last pair repeat it.
struct Strip {
    const void* const* a;  // (strip,) rows of F
    const void* const* b;  // (strip,) rows of F
    float* scratch;
    float* z;         // (strip,) out
    float* features;  // (strip, F) out, or null
};

// How a pair's int8 row b and int16 row a come to one unit: a * row_a / 2^15 + b * row_b / 2^7 counts units.
struct Gauge {
    int16_t row_a, row_b;
    float unit;
};

// A Strip whose passages are int8.
struct ByteStrip {
    const int16_t* const* a;  // (strip,) rows of F
    const int8_t* const* b;   // (strip,) rows of F
    const Gauge* gauge;       // (strip,)
    float* scratch;           // (strip, 2 * F + 64), all 0 before the first strip
    float* z;                 // (strip,) out
};

// Rows of whole numbers, `stride` bytes apart.
struct InnerRows {
    const int8_t* rows;  // (count, width)
    int64_t count, width, stride;
};

// What a strip of the backward reads and adds to. Lanes past the last pair have dz 0 and da null.
struct StripGradient {
    const void* const* a;
    const void* const* b;
    const float* dz;                // (strip,)
    const float* const* dfeatures;  // (strip,) rows of F or null each; null where none is given
    float* const* da;               // (strip,) rows of F, added to in the order of the lanes
    float* const* db;
    float* scratch;
    float* dweight;  // (F, F)
    float* dbias;    // (F,)
    float* dout;     // (F,)
};

// At most kMaxTokens tokens of one sequence, and how many heads look at them.
struct Chunk {
    const void* const* rows;  // (count,) rows of D
    int64_t count;
    int64_t width;   // D
    int64_t heads;   // H
    int64_t stride;  // between the rows of scores or weights (count, H)
    int64_t slab;    // units of D in a slab of packed queries
};

struct TokenGradient {
    void* const* dx;  // (count,) rows of D, written
    int64_t count;
    int64_t width;       // D
    int64_t heads;       // H
    int64_t half;        // H rounded up to kHeadStride
    float* g;            // (count up to whole panels, 2 * half): ds, weights; overwritten
    const float* sides;  // u and dP in units (host/pack.h)
    int64_t stride;      // between the rows of sides
};

// A strip of rows at most, through a linear layer.
struct Linear {
    const float* x;  // (rows, depth)
    int64_t rows, depth, x_stride;
    const float* weight;  // (outputs, depth)
    int64_t outputs, weight_stride;
    const float* bias;  // (outputs,) or null
    float* out;         // (rows, outputs)
    int64_t out_stride;
    float* scratch;  // (kLinearDepth + outputs) * strip floats
};

// Rows through a linear layer whose weights are int8.
struct IntegerLinear {
    const float* x;  // (rows, depth)
    int64_t rows, depth, x_stride;
    const float* weight;  // (panels, units, strip) units of int8 weights
    const float* scale;   // (outputs,) of the rows of the weight
    const float* bias;    // (outputs,) or null
    int64_t outputs;
    float* out;  // (rows, outputs)
    int64_t out_stride;
    float* scratch;  // (rows + panel) * (units + 2) floats
};

// A row of the batch and its hard negatives, for the losses over all pairs.
struct BatchRow {
    const float* z;           // (size,)
    const float* s;           // (size,) or null; NaN counts as 0
    const uint8_t* left_out;  // (size,) or null, nonzero where a column takes no part
    int64_t size;             // B
    int64_t own;              // the column of the row's own passage
    const float* z_hard;      // (hard,)
    const float* s_hard;      // (hard,), NaN where one takes no part
    int64_t hard;             // K
    float slope;              // 1 / temperature
    float* scratch;           // 3 * (size + kBatchBlock) + (4 + strip) * (hard + strip) floats
};

// Zero stands for a term without a gradient.
struct BatchRowGradient {
    float dcross_entropy, dpairwise;
    float* dz;       // (size,) out
    float* dz_hard;  // (hard,) out
};

struct Kernels {
    const char* name;
    int64_t strip;      // pairs in a Strip, and the padding of rows that tiles of the backward read
    int64_t panel;      // output features in a panel
    int64_t unit_bf16;  // input features side by side in weights for bfloat16 rows; 1: they are floats
    int64_t unit_int8;  // the same in int8 weights: 4 bytes, or 2 that were widened to int16
    void (*score_f32)(const BranchView&, const Strip&);
    void (*score_bf16)(const BranchView&, const Strip&);
    void (*score_int8)(const BranchView&, const ByteStrip&);
    // out (count,) = products with a query of units of `unit_int8` numbers, zeros behind them up to a multiple of
    // kInnerPadding.
    void (*inner_products)(const InnerRows&, const void* query, int32_t* out);
    void (*differentiate)(const BranchView&, const float* transposed, const StripGradient&, Rows);
    // Queries u (H, D) of the kind of the rows, as `products` reads them, in slabs that cover D.
    void (*pack_queries)(Rows, const void* u, int64_t heads, int64_t width, int64_t slab, float* packed);
    // s (count, stride) = products of the rows with packed queries.
    void (*products)(const Chunk&, Rows, const float* u, float* s);
    // out (heads, stride) = or += the sum of the rows weighted by a (count, chunk.stride).
    void (*weighted_sum)(const Chunk&, Rows, const float* a, bool add, float* out, int64_t stride);
    void (*maxima)(int64_t count, int64_t stride, const float* s, float* top);
    void (*weights)(int64_t count, int64_t stride, Rows, const float* base, float* s, float* total, float* used);
    void (*normalize)(int64_t heads, int64_t width, int64_t stride, Rows, const float* inverse, const float* p,
                      void* out);
    void (*weighted_slopes)(int64_t count, int64_t half, const float* top, const float* g, float* total,
                            float* weighted);
    void (*softmax_gradient)(int64_t count, int64_t half, const float* top, const float* inverse, const float* mean,
                             const float* dlse, float* g);
    void (*token_gradients)(const TokenGradient&, Rows);
    void (*linear)(const Linear&);
    void (*linear_int8)(const IntegerLinear&);
    void (*in_batch)(const BatchRow&, float* cross_entropy, float* pairwise);
    void (*in_batch_gradient)(const BatchRow&, const BatchRowGradient&);
    double (*peak_f32)(int64_t rounds);
    double (*peak_bf16)(int64_t rounds);
    double (*peak_int8)(int64_t rounds);
};

// The tables; null where the compiler or the processor's family has no such instructions.
extern const Kernels* const kBaseline;
extern const Kernels* const kAvx2;
extern const Kernels* const kAvx512;
extern const Kernels* const kAvx512Vnni;
extern const Kernels* const kAvx512Bf16;

}  // namespace d2llm
