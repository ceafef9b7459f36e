// Items shared out to threads, and what is not portable about it.
//
// PyTorch's wheels bring an OpenMP runtime, whose idle threads wait busily for a while: another pool would fight with
// it for the cores. So its threads are used, through the one function that GCC's and LLVM's runtimes both export on
// Linux. Where none is loaded, and in a process that was forked from one that had threads, threads are made anew.

#pragma once

#include <atomic>
#include <cfenv>
#include <thread>
#include <vector>

#include "lion.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

using Region = void (*)(void (*)(void*), void*, unsigned, unsigned);

// GOMP_parallel of a runtime that is loaded already and that this process has started itself; else null.
inline Region runtime() {
#if defined(__linux__)
    static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const auto started = getpid();
    return started == getpid() ? found : nullptr;
#else
    return nullptr;
#endif
}

// Arithmetic as IEEE 754 has it, whatever a user has set: rounding to nearest, subnormal numbers kept.
class DefaultArithmetic {
    std::fenv_t before;

public:
    DefaultArithmetic() {
        std::fegetenv(&before);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&before); }
};

// Calls `run(first, end)` for runs of 0..count-1, each number once, on up to `threads` threads. A thread takes the next
// run when it is done with one, so that a thread that has to wait for its core holds up no other.
template <class Run>
void shared_out(int64 count, int threads, Run run) {
    if (threads > count) threads = int(count);
    struct Shared {
        std::atomic<int64> next{0};
        int64 count, grain;
        Run& run;
        void work() {
            const DefaultArithmetic arithmetic;
            for (int64 first; (first = next.fetch_add(grain)) < count;)
                run(first, first + grain < count ? first + grain : count);
        }
    };
    constexpr int64 RUNS = 16;  // for each thread
    Shared shared{{0}, count, count / (int64(threads > 0 ? threads : 1) * RUNS) + 1, run};
    if (threads <= 1) return shared.work();
    if (const Region region = runtime()) {
        region([](void* of) { static_cast<Shared*>(of)->work(); }, &shared, unsigned(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&shared] { shared.work(); });
    shared.work();
    for (auto& other : others) other.join();
}
