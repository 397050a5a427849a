// Kernels for AVX-512 with BF16 and VNNI.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(D2LLM_WITHOUT_AVX512)
#include <immintrin.h>

// From here on, and not for the headers above, whose inline functions other files share.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")

#define D2LLM_AVX512
#define D2LLM_LANES 16

namespace d2llm {
namespace {

constexpr const char* kName = "avx512_bf16";
constexpr int kPanel = 8, kColumns = 3, kTokens = 3;

#include "../kernels/all-inl.h"

// Bfloat16 first: the pooling builds on it.
// clang-format off
#include "../kernels/iem_bf16-inl.h"
#include "../kernels/iem_vnni-inl.h"
#include "../kernels/pool_bf16-inl.h"
// clang-format on

typedef Pairs PoolBf16;
typedef Bfloat16 PeakBf16;
typedef Doubles GradientBf16;
typedef Bytes4 ScoreInt8;
constexpr auto score_bf16 = score_pairs;

#include "table-inl.h"

}  // namespace

const Kernels* const kAvx512Bf16 = &kTable;

}  // namespace d2llm

#else

namespace d2llm {
const Kernels* const kAvx512Bf16 = nullptr;
}

#endif
