// What the kernels are launched with: raw pointers, sizes, strides. Strides count elements; rows are contiguous.
#pragma once

#include <cstdint>

namespace d2llm {

enum class Element : int { kFloat32, kFloat16, kBFloat16 };

// A grid of all pairs of (queries, F) and (passages, F), or the given pairs: then both have `passages` rows.
struct Pairs {
    const void* a;
    const void* b;
    int64_t queries, passages;
    int64_t a_stride, b_stride;
    int width;   // F
    bool given;  // pair r joins row r of a and row r of b
};

struct Branch {
    const void* weight;  // (F, F), out by in
    const void* bias;
    const void* out_weight;
    const void* out_bias;
    int64_t weight_stride;
};

struct ScoresArguments {
    Pairs pairs;
    Branch branch;
    float* z;               // (queries, passages) or, of given pairs, (passages,); null where keys are wanted
    int64_t* keys;          // like z: scores and numbers of passages as integers that sort best first
    void* features;         // (passages, F) of given pairs, or null
    int64_t stride;         // between the rows of z or keys
    int64_t first_passage;  // number of the first passage, for keys
};

struct SlopesArguments {
    Pairs pairs;
    Branch branch;
    const void* dz;         // in the dtype of the sums, like z
    const void* dfeatures;  // (passages, F) of given pairs, or null
    int64_t dz_stride;
    void* dpre;          // (pairs, F)
    float* dbias;        // (tiles, F): sums over a tile
    float* dout_weight;  // (tiles, F)
};

struct InputsArguments {
    Pairs pairs;
    const void* transposed;  // (F, F): the weight, in by out, contiguous
    const void* dpre;
    float* da;      // (queries, tiles, F), or null for given pairs
    float* db;      // (groups, passages, F)
    int64_t share;  // queries of a group
};

struct WeightsArguments {
    Pairs pairs;
    const void* dpre;
    float* dweight;  // (groups, F, F), added to
    int groups;
};

// Hidden states of a padded or packed batch. `length` is L where padded and T where packed.
struct Tokens {
    const void* x;
    const uint8_t* mask;     // (B, L), or null
    const int64_t* offsets;  // (B + 1,) of a packed batch, never falling, or null
    int64_t sequences, length;
    int64_t x_stride_b, x_stride_l;
    int64_t mask_stride_b, mask_stride_l;
    int width;  // D
};

struct PoolArguments {
    Tokens tokens;
    const void* u;  // (heads, D)
    int heads;
    int64_t u_stride;
    void* pooled;  // (B, heads, D)
    float* lse;    // (B, heads)
    int64_t pooled_stride_b, lse_stride_b;
    float* scores;  // workspaces, see pool_forward.cu
    float* parts;
    int* counters;
};

struct PoolBackwardArguments {
    Tokens tokens;
    const void* u;
    const void* dpooled;  // (B, heads, D)
    const float* dlse;    // (B, heads), or null
    int heads;
    int64_t u_stride, dpooled_stride_b, dpooled_stride_h, dlse_stride_b, dlse_stride_h;
    float* products;  // workspaces, see pool_backward.cu
    void* weights;
    void* dx;     // rows contiguous, one after the other
    float* sums;  // like dx: what earlier groups of heads contributed, and where a later one follows; or null
    float* du;    // (groups, heads, D)
    int groups;
    bool first, last;  // group of heads
};

}  // namespace d2llm
