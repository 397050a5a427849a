// The one GPU of the emulation, whichever device a tensor is on.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

class CUDAGuard {
  public:
    explicit CUDAGuard(Device) {}
    Device current_device() const { return Device(DeviceType::CUDA, 0); }
};

}  // namespace c10::cuda
