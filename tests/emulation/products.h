// Asynchronous products of a warpgroup (wgmma) with the left operand in registers. Each warp's rows are on their own:
// its products are taken when it waits for them, or, with EMULATION_PRODUCTS=eager, when they are issued.
#pragma once

#include <array>

#include "shared_addresses.h"

namespace emulation {

constexpr int kColumns = 128, kRows = 16;  // of a warp
enum Kind { kBFloat16, kFloat16, kE4M3 };

inline float number_of(uint32_t bits, Kind kind) {
    if (kind == kBFloat16) {
        bits <<= 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    if (kind == kFloat16) {
        const uint16_t half_bits = bits;
        _Float16 half;
        std::memcpy(&half, &half_bits, 2);
        return half;
    }
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float value = exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
    return (bits & 0x7f) == 0x7f ? NAN : bits & 0x80 ? -value : value;
}

// The numbers in `bytes` of memory.
inline void numbers(const void* from, int bytes, Kind kind, float* to, int step) {
    static const std::vector<float> small = [] {
        std::vector<float> all(256);
        for (int i = 0; i < 256; ++i) all[i] = number_of(i, kE4M3);
        return all;
    }();
    const int size = kind == kE4M3 ? 1 : 2;
    for (int i = 0; i < bytes / size; ++i) {
        uint16_t bits = 0;
        std::memcpy(&bits, static_cast<const char*>(from) + i * size, size);
        to[i * step] = kind == kE4M3 ? small[bits] : number_of(bits, kind);
    }
}

// The transpose of the right operand, 32 bytes deep, that a matrix descriptor describes.
inline void right_operand(uint64_t b, Kind kind, float (*to)[kColumns]) {
    Machine& machine = Machine::get();
    const uint32_t start = (b & 0x3fff) << 4, group = (b >> 32 & 0x3fff) << 4;
    if (b >> 62 != 1) machine.fail("a matrix descriptor of another swizzle");
    if ((b >> 49 & 7) || start & 0x380) machine.fail("a matrix descriptor with a base offset");
    const int size = kind == kE4M3 ? 1 : 2;
    for (int n = 0; n < kColumns; ++n)
        for (int piece = 0; piece < 32; piece += 16) {
            uint32_t address = start + n / 8 * group + n % 8 * 128 + piece;
            address ^= (address >> 7 & 7) << 4;
            numbers(own(machine.rank() << kRankShift | address, 16, 16), 16, kind, &to[piece / size][n], kColumns);
        }
}

// One product of all lanes of the running warp.
inline void multiply(const std::array<const Product*, kWarp>& lanes) {
    static float left[kRows][32], right[32][kColumns], sums[kRows][kColumns];
    const Product& first = *lanes[0];
    const Kind kind = static_cast<Kind>(first.kind);
    const int size = kind == kE4M3 ? 1 : 2;
    for (int lane = 0; lane < kWarp; ++lane) {
        if (lanes[lane]->b != first.b || lanes[lane]->add != first.add)
            Machine::get().fail("lanes that multiply with different operands");
        for (int word = 0; word < 4; ++word)
            numbers(&lanes[lane]->a[word], 4, kind,
                    &left[lane / 4 + word % 2 * 8][(lane % 4 * 4 + word / 2 * 16) / size], 1);
    }
    right_operand(first.b, kind, right);
    std::memset(sums, 0, sizeof(sums));
    for (int row = 0; row < kRows; ++row)
        for (int k = 0; k < 32 / size; ++k)
            for (int n = 0; n < kColumns; ++n) sums[row][n] += left[row][k] * right[k][n];
    for (int lane = 0; lane < kWarp; ++lane) {
        auto& pending = Machine::get().lane(lane).products.pending;
        auto entry =
            std::find_if(pending.begin(), pending.end(), [&](const Pending& some) { return some.c == lanes[lane]->c; });
        for (int i = 0; i < 64; ++i) {
            const float sum = sums[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
            entry->values[i] = first.add ? entry->values[i] + sum : sum;
        }
        if (--entry->products) continue;
        std::copy(entry->values, entry->values + 64, entry->c);
        pending.erase(entry);
    }
}

// Does the oldest group of all lanes, which have come together.
inline void finish_group(Machine& machine) {
    std::array<std::vector<Product>, kWarp> groups;
    for (int lane = 0; lane < kWarp; ++lane) {
        auto& waiting = machine.lane(lane).products.groups;
        if (waiting.empty()) machine.fail("lanes with different products");
        groups[lane] = std::move(waiting.front());
        waiting.erase(waiting.begin());
        if (groups[lane].size() != groups[0].size()) machine.fail("lanes with different products");
    }
    for (size_t i = 0; i < groups[0].size(); ++i) {
        std::array<const Product*, kWarp> lanes;
        for (int lane = 0; lane < kWarp; ++lane) lanes[lane] = &groups[lane][i];
        multiply(lanes);
    }
}

inline void commit_products() {
    Products& mine = Machine::get().fiber().products;
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}

// The first lane to go on does what all lanes wait for.
inline void wait_products(size_t pending) {
    Machine& machine = Machine::get();
    machine.wait(Wait::kWarp);
    Products& mine = machine.fiber().products;
    while (mine.groups.size() > pending) finish_group(machine);
    mine.fenced = false;
}

inline void issue(float* c, const uint32_t* a, uint64_t b, bool add, Kind kind) {
    Machine& machine = Machine::get();
    Products& mine = machine.fiber().products;
    if (!mine.fenced) machine.fail("products without a fence");
    auto entry = std::find_if(mine.pending.begin(), mine.pending.end(), [&](const Pending& p) { return p.c == c; });
    if (entry == mine.pending.end()) {
        entry = mine.pending.insert(entry, {c, 0, {}});
        std::copy(c, c + 64, entry->values);
        std::fill(c, c + 64, NAN);
    }
    ++entry->products;
    mine.open.push_back({c, a, b, add, kind});
    if (!machine.eager_products()) return;
    commit_products();
    machine.wait(Wait::kWarp);
    while (!mine.groups.empty()) finish_group(machine);
}

// In late mode the warpgroup meets, as the units may make it do.
inline void fence_products() {
    Machine& machine = Machine::get();
    if (!machine.eager_products()) machine.wait(Wait::kWarpgroup);
    machine.fiber().products.fenced = true;
}

}  // namespace emulation
