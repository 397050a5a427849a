// csrc/cuda/devices.h on a machine that a test makes up: two GPUs, of which the second has compute capability 9.0.
#include <cstdio>

#include "devices.h"

namespace {

int current = 0, attributes = 0, occupancies = 0, questions = 0;

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "error"; }

cudaError_t cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    ++questions;
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 + device : 0;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
    ++attributes;
    return bytes > 227 << 10 ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* most, const void*, const cudaLaunchConfig_t*) {
    ++occupancies;
    return *most = 10 + current, cudaSuccess;
}
}

#define EXPECT(condition) \
    if (!(condition)) return std::printf("line %d: %s\n", __LINE__, #condition), 1

int main() {
    using namespace d2llm;
    const int one = 0, two = 0;
    EXPECT(!is_hopper(0) && is_hopper(1) && is_hopper(1) && questions == 4);

    EXPECT(allow_shared(&one, 48 << 10) == cudaSuccess && attributes == 0);
    for (int call = 0; call < 3; ++call) EXPECT(allow_shared(&one, 64 << 10) == cudaSuccess && attributes == 1);
    EXPECT(allow_shared(&two, 64 << 10) == cudaSuccess && attributes == 2);
    EXPECT(allow_shared(&one, 72 << 10) == cudaSuccess && attributes == 3);
    EXPECT(allow_shared(&one, 64 << 10) == cudaSuccess && attributes == 3);
    current = 1;
    for (int call = 0; call < 3; ++call) EXPECT(allow_shared(&one, 64 << 10) == cudaSuccess && attributes == 4);
    // What was refused is not taken for granted the next time.
    for (int call = 0; call < 2; ++call) EXPECT(allow_shared(&one, 228 << 10) != cudaSuccess && attributes == 5 + call);

    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(256);
    int most = 0;
    for (int call = 0; call < 3; ++call)
        EXPECT(most_clusters(most, &one, 4, config) == cudaSuccess && most == 11 && occupancies == 1);
    current = 0;
    for (int call = 0; call < 3; ++call)
        EXPECT(most_clusters(most, &one, 4, config) == cudaSuccess && most == 10 && occupancies == 2);
    config.dynamicSmemBytes = 1024;
    EXPECT(most_clusters(most, &one, 4, config) == cudaSuccess && occupancies == 3);
    EXPECT(most_clusters(most, &one, 5, config) == cudaSuccess && occupancies == 4);
    return 0;
}
