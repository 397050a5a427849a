// CUDA's execution model on one thread of a CPU, enough to run csrc/cuda: clusters of blocks one after another, a block
// being a cluster of its own unless said otherwise; the threads of a cluster as fibers that switch where they wait for
// each other; shared memory, warp operations and asynchronous copies.
//
// It looks for mistakes that a lucky schedule would hide. Shared memory starts as NaN, with a guard behind it. The
// order in which threads and blocks get their turn is chosen by EMULATION_ORDER (forward, reverse, skewed, or a
// number that shuffles): a race gives different bits in different orders. Asynchronous copies happen as late as they
// may, when they are waited for, or, with EMULATION_COPIES=eager, as early. Asynchronous products (products.h) have
// EMULATION_PRODUCTS for the same choice.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace emulation {

class Machine {
  public:
    static Machine& get() {
        static Machine machine;
        return machine;
    }

    // `name` is the kernel's, with its shape in brackets.
    template <class Kernel>
    void launch(const std::string& name, dim3 grid, unsigned threads, size_t shared, Kernel kernel,
                unsigned cluster = 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        name_ = name;
        largest_shared_ = std::max(largest_shared_, shared);
        kernel_ = kernel;
        configure();
        gridDim = grid;
        blockDim = dim3(threads);
        const unsigned fibers = threads * cluster;
        if (cluster > 1 && threads % kWarp) throw std::runtime_error(name_ + ": a warp of two blocks");
        while (fibers_.size() < fibers) fibers_.emplace_back(new Fiber);
        slots_.resize((fibers + kWarp - 1) / kWarp);
        blocks_.resize(cluster);
        arrange(ranks_, cluster);
        arrange(warps_, (threads + kWarp - 1) / kWarp);
        arrange(lanes_, kWarp);
        std::vector<unsigned> order;
        arrange(order, size_t(grid.x) * grid.y * grid.z / cluster);
        for (unsigned first : order) run_cluster(first * cluster, threads, shared);
    }

    char* shared() { return block().shared; }

    // Of the block whose thread is running.
    unsigned rank() const { return current_ / blockDim.x; }
    unsigned cluster() const { return static_cast<unsigned>(blocks_.size()); }
    Block& block() { return blocks_[rank()]; }
    Block& block(unsigned rank) {
        if (rank >= cluster()) fail("an address of no block of the cluster");
        return blocks_[rank];
    }

    // Dynamic shared memory of the largest block so far.
    size_t largest_shared() const { return largest_shared_; }

    void wait(Wait kind) {
        Fiber& fiber = *fibers_[current_];
        fiber.wait = kind;
        if (!_setjmp(fiber.resume)) _longjmp(scheduler_, 1);
    }

    void wait_until(std::function<bool()> condition) {
        if (condition()) return;
        fibers_[current_]->condition = std::move(condition);
        wait(Wait::kCondition);
    }

    // Does something that happens behind the threads: at once, or when none of them can go on. It says whether it may
    // have let one go on.
    void later(std::function<bool()> operation) {
        if (eager_)
            operation();
        else
            under_way_.push_back(std::move(operation));
    }

    // Fiber `lane` of the running warp.
    Fiber& lane(unsigned lane) { return *fibers_[current_ / kWarp * kWarp + lane]; }
    Fiber& fiber() { return *fibers_[current_]; }
    unsigned thread() const { return current_ % blockDim.x; }
    bool eager_copies() const { return eager_; }
    bool eager_products() const { return eager_products_; }

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
        if (!running_) throw std::runtime_error(name_ + ": " + what);
        failure_ = what;
        _longjmp(scheduler_, 2);
    }

  private:
    void configure() {
        const char* order = std::getenv("EMULATION_ORDER");
        order_ = order ? order : "forward";
        const char* copies = std::getenv("EMULATION_COPIES");
        eager_ = copies && std::string(copies) == "eager";
        const char* products = std::getenv("EMULATION_PRODUCTS");
        eager_products_ = products && std::string(products) == "eager";
        spins_ = 0;
        shuffled_.seed(order_.find_first_not_of("0123456789") == std::string::npos ? std::stoul(order_) : 0);
    }

    void arrange(std::vector<unsigned>& order, size_t count) const {
        order.resize(count);
        std::iota(order.begin(), order.end(), 0u);
        if (order_ == "reverse")
            std::reverse(order.begin(), order.end());
        else if (order_ != "forward" && order_ != "skewed")
            std::shuffle(order.begin(), order.end(), std::mt19937(std::stoul(order_)));
    }

    static void perform(const Copy& copy) {
        std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(copy.to + copy.bytes, 0, 16 - copy.bytes);
    }

    void start(Block& block, unsigned threads, size_t shared) {
        block.memory.assign(shared + kFirstAddress + kGuard, char(0xff));
        block.shared = block.memory.data();
        block.shared += (kFirstAddress - reinterpret_cast<uintptr_t>(block.shared) % kFirstAddress) % kFirstAddress;
        block.bytes = shared;
        block.left = threads;
        block.barriers.clear();
    }

    void start(Fiber& fiber) {
        fiber.started = fiber.done = false;
        fiber.wait = Wait::kNone;
        fiber.groups.clear();
        fiber.open.clear();
        fiber.turn = 0;
        fiber.products = {};
    }

    void run_cluster(unsigned first, unsigned threads, size_t shared) {
        first_block_ = first;
        under_way_.clear();
        for (Block& block : blocks_) start(block, threads, shared);
        for (unsigned t = 0; t < threads * cluster(); ++t) start(*fibers_[t]);
        while (std::any_of(blocks_.begin(), blocks_.end(), [](const Block& block) { return block.left > 0; }))
            if (!(go_on(threads) || flush()))
                throw std::runtime_error(name_ + ": threads wait for others that never come");
        if (!under_way_.empty()) throw std::runtime_error(name_ + ": ends with copies under way");
        for (const Block& block : blocks_) check_guard(block);
    }

    // Lets threads run until they wait. Forward they all keep in step; otherwise, as in "skewed", a warp, and then a
    // block, goes on for as long as it can before the next one gets its turn.
    bool go_on(unsigned threads) {
        const bool in_step = order_ == "forward";
        bool moved = false;
        for (unsigned rank : ranks_) {
            const unsigned first = rank * threads, end = first + threads;
            bool again = true;
            while (again) {
                again = false;
                for (unsigned warp : warps_) {
                    const unsigned lanes = first + warp * kWarp;
                    while (take_turns(lanes, std::min(lanes + kWarp, end))) {
                        again = true;
                        if (in_step) break;
                    }
                }
                again |= release(first, end);
                moved |= again;
                if (in_step) break;
            }
        }
        return release(0, threads * cluster(), Wait::kCluster, true) || moved;
    }

    // Of the lanes of a warp; says whether one went on, or all may now.
    bool take_turns(unsigned first, unsigned end) {
        bool moved = false;
        for (unsigned lane : lanes_) {
            if (first + lane >= end) continue;
            Fiber& fiber = *fibers_[first + lane];
            if (fiber.done || !(fiber.wait == Wait::kNone || comes_true(fiber))) continue;
            resume(first + lane);
            blocks_[first / blockDim.x].left -= fiber.done;
            moved = true;
        }
        return release(first, end, Wait::kWarp, false) || moved;
    }

    void check_guard(const Block& block) const {
        const char* guard = block.shared + block.bytes;
        if (std::any_of(guard, block.memory.data() + block.memory.size(), [](char byte) { return byte != char(0xff); }))
            throw std::runtime_error(name_ + ": wrote past the end of shared memory");
    }

    static bool comes_true(Fiber& fiber) {
        if (fiber.wait != Wait::kCondition || !fiber.condition()) return false;
        fiber.wait = Wait::kNone;
        return true;
    }

    // Does what is under way, one after the other, until somebody may go on.
    bool flush() {
        while (!under_way_.empty()) {
            size_t next = order_ == "forward" || order_ == "skewed" ? 0 : under_way_.size() - 1;
            if (order_ != "forward" && order_ != "skewed" && order_ != "reverse")
                next = shuffled_() % under_way_.size();
            const auto operation = std::move(under_way_[next]);
            under_way_.erase(under_way_.begin() + next);
            if (operation()) return true;
        }
        return false;
    }

    // Lets those of a block go on who have all come.
    bool release(unsigned first, unsigned end) {
        bool any = release(first, end, Wait::kBlock, true);
        for (unsigned group = first; group + 4 * kWarp <= end; group += 4 * kWarp)
            any |= release(group, group + 4 * kWarp, Wait::kWarpgroup, false);
        return any;
    }

    // Those of a group of threads, if all wait, those left aside that have ended where `some` are enough.
    bool release(unsigned first, unsigned end, Wait kind, bool some) {
        bool any = false;
        for (unsigned t = first; t < end; ++t) {
            const Fiber& fiber = *fibers_[t];
            if (fiber.wait == kind && !fiber.done)
                any = true;
            else if (!(some && fiber.done))
                return false;
        }
        if (any)
            for (unsigned t = first; t < end; ++t) fibers_[t]->wait = Wait::kNone;
        return any;
    }

    void resume(unsigned thread) {
        current_ = thread;
        threadIdx = dim3(thread % blockDim.x, 0, 0);
        const unsigned block = first_block_ + thread / blockDim.x;
        blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / (gridDim.x * gridDim.y));
        running_ = true;
        Fiber& fiber = *fibers_[thread];
        const int back = _setjmp(scheduler_);
        if (back) running_ = false;
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
    std::vector<Block> blocks_;
    std::vector<unsigned> ranks_, warps_, lanes_;  // in the order of their turns
    std::deque<std::function<bool()>> under_way_;
    std::mt19937 shuffled_;
    jmp_buf scheduler_;
    unsigned current_ = 0, first_block_ = 0;
    bool eager_ = false, eager_products_ = false, running_ = false;
    size_t largest_shared_ = 0;
    int spins_ = 0;
};

}  // namespace emulation

using emulation::blockDim;
using emulation::blockIdx;
using emulation::gridDim;
using emulation::threadIdx;

inline void __syncthreads() { emulation::Machine::get().wait(emulation::Wait::kBlock); }

inline void __syncwarp() { emulation::Machine::get().wait(emulation::Wait::kWarp); }
