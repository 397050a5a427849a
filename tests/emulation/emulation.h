// CUDA's execution model on one thread of a CPU, enough to run csrc/cuda: blocks one after another, the threads of a
// block as fibers that switch where they wait for each other, shared memory, warp operations and asynchronous copies.
//
// It looks for mistakes that a lucky schedule would hide. Shared memory starts as NaN, with a guard behind it. The
// order in which threads and blocks get their turn is chosen by EMULATION_ORDER (forward, reverse, or a number that
// shuffles): a race gives different bits in different orders. Asynchronous copies happen as late as they may, when
// they are waited for, or, with EMULATION_COPIES=eager, as early.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulation {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
    Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline Dim threadIdx, blockIdx, blockDim, gridDim;

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10, kGuard = 4096;

struct Copy {
    char* to;
    const char* from;
    int bytes;
};

enum class Wait { kNone, kWarp, kBlock };

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool started, done;
    Wait wait;
    std::vector<std::vector<Copy>> groups;  // committed copies, oldest first
    std::vector<Copy> open;
    int turn;  // of the warp's slots
};

// What the lanes of a warp show each other. Two sets, so that a fast lane cannot overwrite what a slow one still reads.
struct Slots {
    alignas(16) char lane[2][kWarp][64];
};

class Machine {
  public:
    static Machine& get() {
        static Machine machine;
        return machine;
    }

    template <class Kernel>
    void launch(const std::string& name, Dim grid, unsigned threads, size_t shared, Kernel kernel) {
        std::lock_guard<std::mutex> lock(mutex_);
        name_ = name;
        largest_shared_ = std::max(largest_shared_, shared);
        kernel_ = kernel;
        configure();
        gridDim = grid;
        blockDim = Dim(threads);
        while (fibers_.size() < threads) fibers_.emplace_back(new Fiber);
        slots_.resize((threads + kWarp - 1) / kWarp);
        std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
        arrange(order);
        for (unsigned block : order) {
            blockIdx = Dim(block % grid.x, block / grid.x % grid.y, block / (grid.x * grid.y));
            run_block(threads, shared);
        }
    }

    char* shared() { return shared_.data() + (128 - reinterpret_cast<uintptr_t>(shared_.data()) % 128) % 128; }

    // Dynamic shared memory of the largest block so far.
    size_t largest_shared() const { return largest_shared_; }

    void wait(Wait kind) {
        Fiber& fiber = *fibers_[current_];
        fiber.wait = kind;
        if (!_setjmp(fiber.resume)) _longjmp(scheduler_, 1);
    }

    // Shows `value` to the warp and returns where lane 0's is; the next ones follow in steps of 64 bytes.
    template <class T>
    const char* exchange(const T& value) {
        static_assert(sizeof(T) <= 64);
        Fiber& fiber = *fibers_[current_];
        auto& lanes = slots_[current_ / kWarp].lane[fiber.turn ^= 1];
        std::memcpy(lanes[current_ % kWarp], &value, sizeof(T));
        wait(Wait::kWarp);
        return lanes[0];
    }

    void copy(const Copy& copy) {
        if (eager_)
            perform(copy);
        else
            fibers_[current_]->open.push_back(copy);
    }

    void commit() {
        Fiber& fiber = *fibers_[current_];
        fiber.groups.push_back(std::move(fiber.open));
        fiber.open.clear();
    }

    // Until at most `pending` of the newest groups are under way.
    void wait_copies(size_t pending) {
        auto& groups = fibers_[current_]->groups;
        const size_t finished = groups.size() > pending ? groups.size() - pending : 0;
        for (size_t group = 0; group < finished; ++group)
            for (const Copy& copy : groups[group]) perform(copy);
        groups.erase(groups.begin(), groups.begin() + finished);
    }

    void spin() {
        if (++spins_ > 1000) fail("a block waits for one that has not started");
    }

    [[noreturn]] void fail(const std::string& what) {
        failure_ = what;
        _longjmp(scheduler_, 2);
    }

  private:
    void configure() {
        const char* order = std::getenv("EMULATION_ORDER");
        order_ = order ? order : "forward";
        const char* copies = std::getenv("EMULATION_COPIES");
        eager_ = copies && std::string(copies) == "eager";
        spins_ = 0;
    }

    void arrange(std::vector<unsigned>& order) const {
        std::iota(order.begin(), order.end(), 0u);
        if (order_ == "reverse")
            std::reverse(order.begin(), order.end());
        else if (order_ != "forward")
            std::shuffle(order.begin(), order.end(), std::mt19937(std::stoul(order_)));
    }

    static void perform(const Copy& copy) {
        std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(copy.to + copy.bytes, 0, 16 - copy.bytes);
    }

    void run_block(unsigned threads, size_t shared) {
        shared_.assign(shared + 128 + kGuard, char(0xff));
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& fiber = *fibers_[t];
            fiber.started = fiber.done = false;
            fiber.wait = Wait::kNone;
            fiber.groups.clear();
            fiber.open.clear();
            fiber.turn = 0;
        }
        std::vector<unsigned> order(threads);
        arrange(order);
        for (unsigned left = threads; left;) {
            bool moved = false;
            for (unsigned t : order)
                if (!fibers_[t]->done && fibers_[t]->wait == Wait::kNone) {
                    resume(t);
                    left -= fibers_[t]->done;
                    moved = true;
                }
            if (!(release(threads) || moved))
                throw std::runtime_error(name_ + ": threads wait for others that never come");
        }
        const char* guard = this->shared() + shared;
        if (std::any_of(guard, guard + kGuard - 128, [](char byte) { return byte != char(0xff); }))
            throw std::runtime_error(name_ + ": wrote past the end of shared memory");
    }

    // Lets those go on who have all come: lanes of a warp, or the block.
    bool release(unsigned threads) {
        bool any = false, block = true;
        for (unsigned first = 0; first < threads; first += kWarp) {
            bool warp = true;
            for (unsigned t = first; t < std::min(first + kWarp, threads); ++t) {
                warp = warp && fibers_[t]->wait == Wait::kWarp;
                block = block && (fibers_[t]->done || fibers_[t]->wait == Wait::kBlock);
            }
            if (!warp) continue;
            for (unsigned t = first; t < std::min(first + kWarp, threads); ++t) fibers_[t]->wait = Wait::kNone;
            any = true;
        }
        if (block)
            for (unsigned t = 0; t < threads; ++t) any |= std::exchange(fibers_[t]->wait, Wait::kNone) == Wait::kBlock;
        return any;
    }

    void resume(unsigned thread) {
        current_ = thread;
        threadIdx = Dim(thread, 0, 0);
        Fiber& fiber = *fibers_[thread];
        const int back = _setjmp(scheduler_);
        if (back == 2) throw std::runtime_error(name_ + ": " + failure_);
        if (back) return;
        if (fiber.started) _longjmp(fiber.resume, 1);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, &Machine::enter, 0);
        setcontext(&fiber.start);
    }

    static void enter() {
        Machine& machine = get();
        machine.kernel_();
        machine.fibers_[machine.current_]->done = true;
        _longjmp(machine.scheduler_, 1);
    }

    std::mutex mutex_;
    std::string name_, order_, failure_;
    std::function<void()> kernel_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Slots> slots_;
    std::vector<char> shared_;
    jmp_buf scheduler_;
    unsigned current_ = 0;
    bool eager_ = false;
    size_t largest_shared_ = 0;
    int spins_ = 0;
};

}  // namespace emulation

using emulation::blockDim;
using emulation::blockIdx;
using emulation::gridDim;
using emulation::threadIdx;
using cudaStream_t = void*;
using dim3 = emulation::Dim;

inline void __syncthreads() { emulation::Machine::get().wait(emulation::Wait::kBlock); }

inline void __syncwarp() { emulation::Machine::get().wait(emulation::Wait::kWarp); }
