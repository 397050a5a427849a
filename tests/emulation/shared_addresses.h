// Addresses in the shared memory of a cluster, and the barriers there that count arrivals and bytes (mbarrier).
#pragma once

#include "emulation.h"

namespace emulation {

constexpr int kRankShift = 24;

// The host's address of `bytes` of shared memory of the cluster.
inline char* at(uint32_t address, size_t bytes, size_t alignment) {
    Machine& machine = Machine::get();
    const Block& block = machine.block(address >> kRankShift);
    const size_t offset = address & ((1u << kRankShift) - 1);
    if (address % alignment) machine.fail("an address in shared memory is not aligned");
    if (offset < kFirstAddress || offset + bytes > kFirstAddress + block.bytes)
        machine.fail("an address outside of shared memory");
    if (!block.left) machine.fail("an access to a block that has ended");
    return block.shared + (offset - kFirstAddress);
}

// The same of the running block's own.
inline char* own(uint32_t address, size_t bytes, size_t alignment) {
    Machine& machine = Machine::get();
    if (address >> kRankShift != machine.rank()) machine.fail("an address of another block");
    return at(address, bytes, alignment);
}

// What comes there later may take the place of what is there from now on.
inline void under_way(uint32_t to, size_t bytes) {
    if (!Machine::get().eager_copies()) std::memset(at(to, bytes, 16), 0xff, bytes);
}

inline uint32_t address_of(const void* pointer) {
    Machine& machine = Machine::get();
    const size_t offset = static_cast<const char*>(pointer) - machine.block().shared;
    if (offset > machine.block().bytes) machine.fail("a pointer outside of shared memory");
    return machine.rank() << kRankShift | static_cast<uint32_t>(offset + kFirstAddress);
}

// Eight bytes, like the real one, so that whoever writes over it is found out.
struct Barrier {
    static constexpr uint8_t kMark = 0xb5;

    int32_t bytes;  // asked for and not there yet; negative where they came before they were asked for
    uint8_t arrivals, missing, phase, mark;

    // Whether the phase is over now.
    bool turn() {
        if (missing || bytes) return false;
        missing = arrivals;
        phase ^= 1;
        return true;
    }

    bool arrive() {
        if (!missing) Machine::get().fail("one arrival too many at a barrier");
        --missing;
        return turn();
    }

    bool count(int more) {
        bytes += more;
        if (std::abs(bytes) >= 1 << 20) Machine::get().fail("more bytes than a barrier can count");
        return turn();
    }
};

static_assert(sizeof(Barrier) == 8);

inline Barrier& checked(char* place) {
    Barrier& barrier = *reinterpret_cast<Barrier*>(place);
    if (barrier.mark != Barrier::kMark) Machine::get().fail("a barrier was not initialized, or written over");
    return barrier;
}

inline Barrier& barrier_at(uint32_t address) { return checked(at(address, 8, 8)); }
inline Barrier& own_barrier(uint32_t address) { return checked(own(address, 8, 8)); }

}  // namespace emulation
