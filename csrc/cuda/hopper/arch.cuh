// Kernels of this folder have a body for sm_90a only and trap elsewhere, where nothing launches them.
#pragma once

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define D2LLM_SM90A 1
#elif defined(__CUDA_ARCH__)
#pragma nv_diag_suppress 177  // what only such bodies use
#endif
