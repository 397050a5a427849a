// The operations of csrc/cuda/platform.cuh on a CPU: what it says in PTX, lane by lane.
#pragma once

#include "elements.h"
#include "emulation.h"
#include "kernels.h"

namespace d2llm {

using std::max;
using std::min;

inline char* shared_memory() { return emulation::Machine::get().shared(); }

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t __float_as_uint(float value) { return bits_of(value); }
inline float __uint_as_float(uint32_t bits) { return float_of(bits); }

inline int __clz(int value) { return __builtin_clz(value); }

inline float widen(float value) { return value; }
inline float widen(bf16 value) { return float_of(uint32_t{value.bits} << 16); }

inline float widen(fp16 value) {
    _Float16 half;
    std::memcpy(&half, &value.bits, 2);
    return half;
}

inline void narrow(float value, float& out) { out = value; }

inline void narrow(float value, bf16& out) {
    const uint32_t bits = bits_of(value);
    out.bits = std::isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline void narrow(float value, fp16& out) {
    const _Float16 half = static_cast<_Float16>(value);
    std::memcpy(&out.bits, &half, 2);
}

inline float relu(float value) { return value > 0 || std::isnan(value) ? value : 0.0f; }

inline uint32_t add_relu(uint32_t a, uint32_t b, float) { return bits_of(relu(float_of(a) + float_of(b))); }

template <class E>
uint32_t add_relu(uint32_t a, uint32_t b, E) {
    uint32_t result = 0;
    for (int shift : {0, 16}) {
        E sum;
        narrow(relu(widen(E{uint16_t(a >> shift)}) + widen(E{uint16_t(b >> shift)})), sum);
        result |= uint32_t{sum.bits} << shift;
    }
    return result;
}

struct Operands {
    uint32_t a[4], b[2];
};

// Element k of row or column `index` of an operand that lies across the lanes, 4 to a row.
inline float element(const char* lanes, bool second, int index, int k, float) {
    const auto* of = reinterpret_cast<const Operands*>(lanes + 64 * (4 * (index % 8) + k % 4));
    const uint32_t word = second ? of->b[k / 4] : of->a[k / 4 * 2 + index / 8];
    return float_of(word & 0xffffe000);
}

template <class E>
float element(const char* lanes, bool second, int index, int k, E) {
    const auto* of = reinterpret_cast<const Operands*>(lanes + 64 * (4 * (index % 8) + k % 8 / 2));
    const uint32_t word = second ? of->b[k / 8] : of->a[k / 8 * 2 + index / 8];
    return widen(E{uint16_t(word >> k % 2 * 16)});
}

// Numbers as a matrix unit adds them, which rounds nothing to nearest: all are cut off one bit below the last of the
// largest in float32, added up, and the sum is cut off to float32. So measured on real ones: Fasi, Higham, Mikaitis and
// Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330, 2021; Khattak and Mikaitis,
// "Accurate models of NVIDIA tensor cores", arXiv 2512.07004, 2025, who found one more bit of the terms in newer units.
template <size_t N>
float truncated_sum(const float (&terms)[N]) {
    float largest = 0;
    for (float term : terms) largest = std::isfinite(term) ? max(largest, std::fabs(term)) : INFINITY;
    if (!std::isfinite(largest)) return std::accumulate(terms, terms + N, 0.0f);
    const double last = std::ldexp(1.0, max(int(bits_of(largest) >> 23), 1) - 127 - 24);
    int64_t sum = 0;
    for (float term : terms) sum += static_cast<int64_t>(term / last);
    const int spare = 64 - 24 - __builtin_clzll(std::abs(sum) | 1);
    return static_cast<float>((spare > 0 ? sum / (int64_t{1} << spare) * (int64_t{1} << spare) : sum) * last);
}

template <class E>
void mma_words(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, E tag) {
    const char* lanes = emulation::Machine::get().exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        const auto product = [&](int k) {
            return element(lanes, false, row, k, tag) * element(lanes, true, column, k, tag);
        };
        if constexpr (sizeof(E) == 4) {
            // Four products at a time, the fewest that a unit for tf32 was found to take.
            for (int k = 0; k < 8; k += 4)
                c[i] = truncated_sum({c[i], product(k), product(k + 1), product(k + 2), product(k + 3)});
        } else {
            // What is cut off here is far below the rounding of the operands.
            float sum = 0;
            for (int k = 0; k < 16; ++k) sum += product(k);
            c[i] += sum;
        }
    }
}

inline const char* row_address(const char* lanes, int lane) {
    const char* address;
    std::memcpy(&address, lanes + 64 * lane, sizeof(address));
    if (reinterpret_cast<uintptr_t>(address) % 16) emulation::Machine::get().fail("a matrix row is not aligned");
    return address;
}

inline void load_matrices(uint32_t (&words)[4], const char* row) {
    const char* lanes = emulation::Machine::get().exchange(row);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) std::memcpy(&words[i], row_address(lanes, 8 * i + lane / 4) + lane % 4 * 4, 4);
}

inline void load_transposed(uint32_t (&words)[4], const char* row) {
    const char* lanes = emulation::Machine::get().exchange(row);
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e)
            std::memcpy(&pair[e], row_address(lanes, 8 * i + lane % 4 * 2 + e) + lane / 4 * 2, 2);
        std::memcpy(&words[i], pair, 4);
    }
    // The rows are read as they are now; none may be overwritten before all lanes have read.
    __syncwarp();
}

inline void copy16(char* to, const void* from, int bytes) {
    auto& machine = emulation::Machine::get();
    if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16))
        machine.fail("a copy of 16 bytes is not aligned");
    machine.copy({to, static_cast<const char*>(from), bytes});
}

inline void commit_copies() { emulation::Machine::get().commit(); }

template <int PENDING>
void wait_copies() {
    emulation::Machine::get().wait_copies(PENDING);
}

inline float shuffle_xor(float value, int mask) {
    const char* lanes = emulation::Machine::get().exchange(value);
    std::memcpy(&value, lanes + 64 * (threadIdx.x % 32 ^ mask), 4);
    return value;
}

inline float load_fresh(const float* from) { return *from; }

inline int add_relaxed(int* counter, int value) { return std::exchange(*counter, *counter + value); }
inline int add_release(int* counter, int value) { return add_relaxed(counter, value); }
inline int load_acquire(const int* counter) { return *counter; }
inline void fence() {}
inline void pause() { emulation::Machine::get().spin(); }

inline float exponential(float value) { return std::exp(value); }

template <class Arguments, class Shape>
void launch(void (*function)(Arguments), Kernel& kernel, dim3 grid, unsigned threads, size_t shared, cudaStream_t,
            const Arguments& arguments, Shape shape) {
    const std::string label = std::string(kernel.name) + " (" + shape() + ")";
    emulation::Machine::get().launch(label, grid, threads, shared, [=] { function(arguments); });
    kernel.count();
}

}  // namespace d2llm
