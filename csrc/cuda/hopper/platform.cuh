// The operations of the machine that only Hopper has, as ../platform.cuh has those of every GPU: PTX for nvcc, and for
// a C++ compiler what tests/emulation runs on a CPU.
#pragma once

#include "../platform.cuh"
#include "layout.cuh"

#ifdef __CUDACC__
#include "arch.cuh"
#include "bulk_copy.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "driver.h"
#include "mbarrier.cuh"
#include "shared.cuh"
#include "wgmma.cuh"
#else
#include "hopper_primitives.h"
#endif
