// What CUDA is asked or told about a device, or about a kernel there: once, for the answer stays and each such call
// costs as much as a launch.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "check.h"

namespace d2llm {

// Whether a device has compute capability 9.0.
inline bool is_hopper(int device) {
    static const std::vector<bool> known = [] {
        int devices = 0;
        check(cudaGetDeviceCount(&devices), "devices", "");
        std::vector<bool> found;
        for (int one = 0; one < devices; ++one) {
            int major = 0, minor = 0;
            check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, one), "devices", "");
            check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, one), "devices", "");
            found.push_back(major == 9 && minor == 0);
        }
        return found;
    }();
    return known.at(device);
}

// Lets launches of a kernel on the current device take so much dynamic shared memory.
inline cudaError_t allow_shared(const void* kernel, size_t shared) {
    constexpr size_t kStandard = 48 << 10;
    if (shared <= kStandard) return cudaSuccess;
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int>, size_t> allowed;
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    const std::lock_guard<std::mutex> lock(mutex);
    size_t& most = allowed[{kernel, device}];
    if (shared <= most) return cudaSuccess;
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status == cudaSuccess) most = shared;
    return status;
}

// How many clusters of a launch the current device runs at once.
inline cudaError_t most_clusters(int& most, const void* kernel, int cluster, const cudaLaunchConfig_t& config) {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, int, unsigned, size_t>, int> known;
    int device = 0;
    if (const cudaError_t status = cudaGetDevice(&device)) return status;
    const std::lock_guard<std::mutex> lock(mutex);
    const std::tuple key{kernel, device, cluster, config.blockDim.x, config.dynamicSmemBytes};
    if (const auto found = known.find(key); found != known.end()) {
        most = found->second;
        return cudaSuccess;
    }
    const cudaError_t status = cudaOccupancyMaxActiveClusters(&most, kernel, &config);
    if (status == cudaSuccess) known[key] = most;
    return status;
}

}  // namespace d2llm
