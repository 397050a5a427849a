// Counts the instructions of the calling thread: with the trap flag set the processor raises a signal after each one.

#include <csignal>
#include <cstdint>

static volatile int64_t counted;

static void count(int) { counted = counted + 1; }

extern "C" void begin() {
    struct sigaction action = {};
    action.sa_handler = count;
    sigaction(SIGTRAP, &action, nullptr);
    counted = 0;
    asm volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
}

extern "C" int64_t end() {
    asm volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" ::: "memory", "cc");
    return counted;
}
