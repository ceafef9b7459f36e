// What kernels ask of the runtime, and what the host calls.

#pragma once

namespace cuda_on_cpu {

// Where the lanes of a warp wait for each other, and what they get from it.
enum Meeting : unsigned char { SYNCTHREADS, SYNCWARP, SHUFFLE, VOTE, ADD, MAX, MIN };

// Waits for all threads of the block.
void meet_block();

// Waits for the lanes in `mask`, each of which brings a value; `from` is the lane whose value a shuffle gives.
unsigned long long meet(Meeting at, unsigned mask, unsigned long long value = 0, unsigned from = 0);

// 0..31 in the warp.
unsigned current_lane();

// Ends the launch with an error.
[[noreturn]] void refuse(const char* reason);

// A kernel as the host sees it; `types` has a letter of Python's struct for each parameter, Q for pointers.
struct Kernel {
    const char* name;
    const char* types;
    void (*run)(void* const* arguments);  // one pointer to each value
};

}  // namespace cuda_on_cpu
