// Kernels for baseline.
#include "kernels.h"

#define D2LLM_LANES 4

namespace d2llm {
namespace {

constexpr const char* kName = "baseline";
constexpr int kPanel = 6, kColumns = 2, kTokens = 1;

#include "../kernels/all-inl.h"

typedef Wide PoolBf16;
typedef Float32 PeakBf16;
typedef Singles<uint16_t> GradientBf16;
typedef Shorts2 ScoreInt8;
constexpr auto score_bf16 = score<uint16_t>;

#include "table-inl.h"

}  // namespace

const Kernels* const kBaseline = &kTable;

}  // namespace d2llm
