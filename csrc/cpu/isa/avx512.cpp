// Kernels for AVX-512.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(D2LLM_WITHOUT_AVX512)
#include <immintrin.h>

// From here on, and not for the headers above, whose inline functions other files share.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

#define D2LLM_AVX512
#define D2LLM_LANES 16

namespace d2llm {
namespace {

constexpr const char* kName = "avx512";
constexpr int kPanel = 8, kColumns = 3, kTokens = 3;

#include "../kernels/all-inl.h"

typedef Wide PoolBf16;
typedef Float32 PeakBf16;
typedef Singles<uint16_t> GradientBf16;
typedef Shorts2 ScoreInt8;
constexpr auto score_bf16 = score<uint16_t>;

#include "table-inl.h"

}  // namespace

const Kernels* const kAvx512 = &kTable;

}  // namespace d2llm

#else

namespace d2llm {
const Kernels* const kAvx512 = nullptr;
}

#endif
