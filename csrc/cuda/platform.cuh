// The few operations of the machine that the kernels are written in. Compiled by nvcc they are PTX; a C++ compiler
// gets them from tests/emulation, which runs the same kernels on a CPU.
#pragma once

#ifdef __CUDACC__
#include "ptx.cuh"
#else
#include "primitives.h"
#endif
