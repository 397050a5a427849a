#include "dispatch.h"

#include <c10/util/Exception.h>

#include <cstdlib>

namespace d2llm {
namespace {

struct Candidate {
    const Kernels* table;
    bool runs;
};

std::vector<Candidate> candidates() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
#else
    const bool avx2 = false, avx512 = false, vnni = false, bf16 = false;
#endif
    return {{kAvx512Bf16, bf16}, {kAvx512Vnni, vnni}, {kAvx512, avx512}, {kAvx2, avx2}, {kBaseline, true}};
}

const Kernels& choose() {
    const char* asked = std::getenv("D2LLM_KERNELS_ISA");
    for (const Candidate& candidate : candidates()) {
        if (!candidate.table || !candidate.runs) continue;
        if (!asked || !*asked || std::string(asked) == candidate.table->name) return *candidate.table;
    }
    std::string names;
    for (const std::string& name : available()) names += (names.empty() ? "" : ", ") + name;
    TORCH_CHECK_VALUE(false, "D2LLM_KERNELS_ISA: expected one of ", names, ", got ", asked);
}

}  // namespace

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates())
        if (candidate.table && candidate.runs) names.emplace_back(candidate.table->name);
    return names;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

}  // namespace d2llm
