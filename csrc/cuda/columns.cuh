// Runs of neighbouring columns in global memory.
#pragma once

#include "tiles.cuh"

namespace d2llm {

// values[i] = from[i] of a run that starts at `column` of `width`; 0 past the end. `vector`: the run may be read whole.
template <class E, int N>
__device__ __forceinline__ void load_run(float (&values)[N], const E* from, int column, int width, bool vector) {
    if (vector && column + N <= width) {
        alignas(16) E run[N];
        for (int i = 0; i < int(N * sizeof(E) / 16); ++i)
            reinterpret_cast<Vector*>(run)[i] = reinterpret_cast<const Vector*>(from + column)[i];
        for (int i = 0; i < N; ++i) values[i] = widen(run[i]);
    } else {
        for (int i = 0; i < N; ++i) values[i] = column + i < width ? widen(from[column + i]) : 0.0f;
    }
}

template <class E, int N>
__device__ __forceinline__ void store_run(const float (&values)[N], E* to, int column, int width, bool vector) {
    if (vector && column + N <= width) {
        alignas(16) E run[N];
        for (int i = 0; i < N; ++i) narrow(values[i], run[i]);
        for (int i = 0; i < int(N * sizeof(E) / 16); ++i)
            reinterpret_cast<Vector*>(to + column)[i] = reinterpret_cast<const Vector*>(run)[i];
    } else {
        for (int i = 0; i < N; ++i)
            if (column + i < width) narrow(values[i], to[column + i]);
    }
}

}  // namespace d2llm
