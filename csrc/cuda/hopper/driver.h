// What only the driver and the runtime of CUDA do: tensor maps, and launches of clusters.
//
// The driver's function is looked up at run time, so that nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <functional>
#include <string>

#include "../check.h"
#include "../devices.h"
#include "../kernels.h"

namespace d2llm::hopper {

// The kernel of a call, and what makes the words in which an error tells its shape.
struct Call {
    Kernel& kernel;
    std::function<std::string()> shape;

    void check(cudaError_t status) const {
        if (status != cudaSuccess) d2llm::check(status, kernel.name, shape());
    }
};

inline decltype(&cuTensorMapEncodeTiled) map_encoder(const Call& call) {
    static std::atomic<void*> known{nullptr};
    void* function = known.load(std::memory_order_acquire);
    if (!function) {
        cudaDriverEntryPointQueryResult found;
        call.check(
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
        if (found != cudaDriverEntryPointSuccess || !function) call.check(cudaErrorSymbolNotFound);
        known.store(function, std::memory_order_release);
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// A launch of clusters of one block a multiprocessor: as many as run at once, or `wanted`, if that is less; never fewer
// than `least`.
template <class Arguments>
void launch_clusters(const Call& call, void (*kernel)(Arguments), int64_t wanted, int least, int cluster, int threads,
                     size_t shared, cudaStream_t stream, const Arguments& arguments) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    call.check(allow_shared(function, shared));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int most = 0;
    call.check(most_clusters(most, function, cluster, config));
    if (most < least) call.check(cudaErrorInvalidConfiguration);
    config.gridDim = dim3(static_cast<unsigned>(wanted < most ? wanted : most) * cluster);
    call.check(cudaLaunchKernelEx(&config, kernel, arguments));
    call.kernel.count();
}

}  // namespace d2llm::hopper
