// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// The table of one instruction set, after its kernels. The includer says with which units it multiplies: for scores of
// bfloat16 rows, for tokens of bfloat16 and for int8.

static void pool_queries(Rows rows, const void* u, int64_t heads, int64_t width, int64_t slab, float* packed) {
    rows == Rows::f32 ? pack_queries<Wide, float>(u, heads, width, slab, packed)
                      : pack_queries<PoolBf16, uint16_t>(u, heads, width, slab, packed);
}

static void pool_products(const Chunk& chunk, Rows rows, const float* u, float* s) {
    rows == Rows::f32 ? products<Wide, float>(chunk, u, s) : products<PoolBf16, uint16_t>(chunk, u, s);
}

static void pool_sum(const Chunk& chunk, Rows rows, const float* a, bool add, float* out, int64_t stride) {
    rows == Rows::f32 ? weighted_sum<Wide, float>(chunk, a, add, out, stride)
                      : weighted_sum<PoolBf16, uint16_t>(chunk, a, add, out, stride);
}

static void pool_weights(int64_t count, int64_t stride, Rows rows, const float* base, float* s, float* total,
                         float* used) {
    rows == Rows::f32 ? weights<Wide>(count, stride, base, s, total, used)
                      : weights<PoolBf16>(count, stride, base, s, total, used);
}

static void pool_normalize(int64_t heads, int64_t width, int64_t stride, Rows rows, const float* inverse,
                           const float* p, void* out) {
    rows == Rows::f32 ? normalize(heads, width, stride, inverse, p, static_cast<float*>(out))
                      : normalize(heads, width, stride, inverse, p, static_cast<uint16_t*>(out));
}

static void token_rows(const TokenGradient& s, Rows rows) {
    rows == Rows::f32 ? token_gradients<Wide, float>(s) : token_gradients<PoolBf16, uint16_t>(s);
}

static void differentiate_rows(const BranchView& branch, const float* transposed, const StripGradient& s, Rows rows) {
    rows == Rows::f32 ? differentiate<Singles<float>>(branch, transposed, s)
                      : differentiate<GradientBf16>(branch, transposed, s);
}

static const Kernels kTable = {
    kName,
    kStrip,
    kPanel,
    PoolBf16::kProducts,
    ScoreInt8::kProducts,
    score<float>,
    score_bf16,
    score_bytes<ScoreInt8>,
    inner_products<ScoreInt8>,
    differentiate_rows,
    pool_queries,
    pool_products,
    pool_sum,
    maxima,
    pool_weights,
    pool_normalize,
    weighted_slopes,
    softmax_gradient,
    token_rows,
    linear,
    linear_steps<ScoreInt8>,
    in_batch,
    in_batch_gradient,
    peak<Float32>,
    peak<PeakBf16>,
    peak<ScoreInt8, Integers>,
};
