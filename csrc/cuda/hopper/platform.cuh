// The operations of the machine that only Hopper has, as ../platform.cuh has those of every GPU.
#pragma once

#include <platform.cuh>

#include "arch.cuh"
#include "bulk_copy.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "driver.h"
#include "layout.cuh"
#include "mbarrier.cuh"
#include "shared.cuh"
#include "wgmma.cuh"
