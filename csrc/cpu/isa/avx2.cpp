// Kernels for AVX2.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// From here on, and not for the headers above, whose inline functions other files share.
#pragma GCC target("avx2,fma")

#define D2LLM_AVX2
#define D2LLM_LANES 8

namespace d2llm {
namespace {

constexpr const char* kName = "avx2";
constexpr int kPanel = 6, kColumns = 2, kTokens = 1;

#include "../kernels/all-inl.h"

typedef Wide PoolBf16;
typedef Float32 PeakBf16;
typedef Singles<uint16_t> GradientBf16;
typedef Shorts2 ScoreInt8;
constexpr auto score_bf16 = score<uint16_t>;

#include "table-inl.h"

}  // namespace

const Kernels* const kAvx2 = &kTable;

}  // namespace d2llm

#else

namespace d2llm {
const Kernels* const kAvx2 = nullptr;
}

#endif
