// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Exponentials of a chunk of scores (count, stride), the heads in the lanes.

// Tokens are summed in blocks of this many, then the blocks: one running sum would gather an error for each token.
constexpr int64_t kSummed = 16;

// exp(x) for x <= 80 to about one unit in the last place; 0 below the smallest normal number, NaN for NaN.
D2LLM_INLINE Vector exponential(Vector x) {
    const Vector magic = broadcast(12582912.0f), log2e = broadcast(1.44269504088896341f);
    const Vector shifted = x * log2e + magic, n = shifted - magic;
    // ln 2 in two parts, so that n times the first is exact.
    const Vector r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
    Vector p = broadcast(1.9875691500e-4f);
    p = p * r + broadcast(1.3981999507e-3f);
    p = p * r + broadcast(8.3334519073e-3f);
    p = p * r + broadcast(4.1665795894e-2f);
    p = p * r + broadcast(1.6666665459e-1f);
    p = p * r + broadcast(5.0000001201e-1f);
    p = p * r * r + r + broadcast(1.0f);
    // The low bits of `shifted` hold n; 2^n is made in the exponent.
    const Vector power = (Vector)(((Bits)shifted << 23) + (Bits)broadcast(1.0f));
    return x < broadcast(-87.3f) ? Vector{} : p * power;
}

// top (stride,): the largest score of each head.
static void maxima(int64_t count, int64_t stride, const float* s, float* top) {
    for (int64_t h = 0; h < stride; h += kLanes) {
        Vector most = load(s + h);
        for (int64_t t = 1; t < count; ++t) {
            const Vector v = load(s + t * stride + h);
            most = v > most ? v : most;
        }
        store(top + h, most);
    }
}

// s = exp(s - base) per head; total (stride,) += the sum of them. Where the weights get rounded, `used` (stride,) gets
// the sum of what they were rounded to.
template <class Unit>
static void weights(int64_t count, int64_t stride, const float* base, float* s, float* total, float* used) {
    for (int64_t h = 0; h < stride; h += kLanes) {
        const Vector shift = load(base + h);
        Vector sum = load(total + h), rounded = load(used + h);
        for (int64_t first = 0; first < count; first += kSummed) {
            Vector part = {}, rounded_part = {};
            for (int64_t t = first; t < count && t < first + kSummed; ++t) {
                const Vector e = exponential(load(s + t * stride + h) - shift), w = Unit::round(e);
                store(s + t * stride + h, w);
                part += e;
                rounded_part += w;
            }
            sum += part;
            rounded += rounded_part;
        }
        store(total + h, sum);
        store(used + h, rounded);
    }
}

// total and weighted (half,): the sums over all tokens of exp(score - top), and of that times da. g (count, 2 * half)
// holds scores and da.
static void weighted_slopes(int64_t count, int64_t half, const float* top, const float* g, float* total,
                            float* weighted) {
    for (int64_t h = 0; h < half; h += kLanes) {
        Vector sum = {}, sloped = {};
        for (int64_t first = 0; first < count; first += kSummed) {
            Vector part = {}, sloped_part = {};
            for (int64_t t = first; t < count && t < first + kSummed; ++t) {
                const float* at = g + t * 2 * half + h;
                const Vector e = exponential(load(at) - load(top + h));
                part += e;
                sloped_part += e * load(at + half);
            }
            sum += part;
            sloped += sloped_part;
        }
        store(total + h, sum);
        store(weighted + h, sloped);
    }
}

// Scores and da become ds and the weights in their place; mean (half,) is the sum of a da over the whole sequence. What
// cancels is taken away first: a lone token's da and mean are the same number.
static void softmax_gradient(int64_t count, int64_t half, const float* top, const float* inverse, const float* mean,
                             const float* dlse, float* g) {
    for (int64_t t = 0; t < count; ++t) {
        for (int64_t h = 0; h < half; h += kLanes) {
            float* at = g + t * 2 * half + h;
            const Vector weight = exponential(load(at) - load(top + h)) * load(inverse + h);
            store(at, weight * ((load(at + half) - load(mean + h)) + load(dlse + h)));
            store(at + half, weight);
        }
    }
}

// out (H, width) = p * inverse, head by head; `stride` floats or halves from head to head.
template <class T>
static void normalize(int64_t heads, int64_t width, int64_t stride, const float* inverse, const float* p, T* out) {
    for (int64_t h = 0; h < heads; ++h, p += stride, out += stride)
        for (int64_t d = 0; d < width; d += kLanes)
            store(out + d, load(p + d, width - d) * broadcast(inverse[h]), width - d);
}
