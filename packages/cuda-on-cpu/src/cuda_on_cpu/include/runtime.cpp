// Runs a grid, block after block. The threads of a block are fibers, each of which runs until it has to wait for
// others, in an order that depends on a seed: what a kernel computes must not.

#include "runtime.h"

#include "fibers.h"
#include "language.h"

#include <fenv.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

using uint64 = unsigned long long;

constexpr unsigned LARGEST_BLOCK = 1024, WARP = 32;

enum State : unsigned char { READY, WAITING, ENDED };

struct Fiber {
    Context context;
    uint3 index;
    State state;
    Meeting at;  // where it waits, and with which of its warp
    unsigned mask;
    unsigned from;
    uint64 value, result;
};

static Fiber fibers[LARGEST_BLOCK];
static unsigned threads;                             // of the block
static unsigned waiting_lanes[LARGEST_BLOCK / WARP];  // of each warp, at a meeting of the warp
static unsigned waiting_for_block, ended;
static Fiber* current;
static Context scheduler;
static const Kernel* kernel;
static void* const* arguments;

// --- errors ---------------------------------------------------------------------------------------------

static char error[512];

static void report(const char* format, ...) {
    const int length = snprintf(error, sizeof error, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
    va_list values;
    va_start(values, format);
    vsnprintf(error + length, sizeof error - length, format, values);
    va_end(values);
}

void refuse(const char* reason) {
    const uint3 i = current->index;
    report("thread (%u, %u, %u): %s", i.x, i.y, i.z, reason);
    give_way(current->context, scheduler);
    __builtin_unreachable();  // a launch that failed is left where it is
}

static const char* name_of(Meeting at) {
    static const char* const NAMES[] = {"__syncthreads", "__syncwarp", "a shuffle", "a vote", "a reduction", "a reduction",
                                        "a reduction"};
    return NAMES[at];
}

// Nobody can go on: names a thread that waits, and one for which it waits in vain.
static void report_deadlock() {
    const Fiber* waits = fibers;
    while (waits->state != WAITING) ++waits;
    const bool everybody = waits->at == SYNCTHREADS;
    const Fiber* first = everybody ? fibers : waits - (waits - fibers) % WARP;
    const Fiber* missing = first;
    auto wanted = [&] { return everybody || (waits->mask >> (missing - first) & 1); };
    auto there = [&] { return missing->state == WAITING && missing->at == waits->at && missing->mask == waits->mask; };
    while (!wanted() || there()) ++missing;
    char mask[32] = "";
    if (!everybody) snprintf(mask, sizeof mask, " (mask 0x%08x)", waits->mask);
    const uint3 w = waits->index, m = missing->index;
    report("%s%s was not reached by every %s: thread (%u, %u, %u) waits there, thread (%u, %u, %u) %s%s",
           name_of(waits->at), mask, everybody ? "thread of the block" : "lane in its mask", w.x, w.y, w.z, m.x, m.y, m.z,
           missing->state == ENDED ? "has ended" : "waits at ", missing->state == ENDED ? "" : name_of(missing->at));
    if (missing->state == WAITING && missing->at != SYNCTHREADS)
        snprintf(error + strlen(error), sizeof error - strlen(error), " (mask 0x%08x)", missing->mask);
}

// --- meetings -------------------------------------------------------------------------------------------

static void wait(Meeting at, unsigned mask) {
    current->state = WAITING, current->at = at, current->mask = mask;
}

void meet_block() {
    wait(SYNCTHREADS, 0);
    ++waiting_for_block;
    give_way(current->context, scheduler);
}

static void release_block() {
    for (unsigned i = 0; i < threads; ++i) fibers[i].state = READY;
    waiting_for_block = 0;
}

static uint64 combine(Meeting at, uint64 a, uint64 b) {
    if (at == ADD) return a + b;
    if (at == MAX) return (long long)a < (long long)b ? b : a;
    return (long long)b < (long long)a ? b : a;
}

static unsigned lowest(unsigned lanes) { return unsigned(__builtin_ctz(lanes)); }

// What the lanes of a complete meeting get: each for itself, so that nobody has to read another's value later.
static void exchange(Fiber* warp, unsigned lanes, Meeting at) {
    if (at == SYNCWARP) return;
    if (at == SHUFFLE) {
        for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
            Fiber& lane = warp[lowest(rest)];
            const bool somebody = lanes >> lane.from & 1;  // otherwise CUDA leaves the value undefined
            lane.result = somebody ? warp[lane.from].value : ~uint64(0);
        }
        return;
    }
    uint64 common = at == VOTE ? 0 : warp[lowest(lanes)].value;
    for (unsigned rest = at == VOTE ? lanes : lanes & (lanes - 1); rest != 0; rest &= rest - 1) {
        const unsigned lane = lowest(rest);
        common = at == VOTE ? common | warp[lane].value << lane : combine(at, common, warp[lane].value);
    }
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) warp[lowest(rest)].result = common;
}

// Releases the lanes in `mask` if all of them have come. Lanes that a smaller block does not have are not waited for.
static void release_lanes(unsigned index, Meeting at, unsigned mask) {
    Fiber* const warp = fibers + index * WARP;
    const unsigned size = threads - index * WARP;
    const unsigned lanes = size < WARP ? mask & ((1u << size) - 1) : mask;
    if ((waiting_lanes[index] & lanes) != lanes) return;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
        const Fiber& lane = warp[lowest(rest)];
        if (lane.at != at || lane.mask != mask) return;
    }
    exchange(warp, lanes, at);
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) warp[lowest(rest)].state = READY;
    waiting_lanes[index] &= ~lanes;
}

unsigned current_lane() { return unsigned(current - fibers) % WARP; }

uint64 meet(Meeting at, unsigned mask, uint64 value, unsigned from) {
    const unsigned warp = unsigned(current - fibers) / WARP, lane = current_lane();
    if (!(mask >> lane & 1)) {
        char reason[96];
        snprintf(reason, sizeof reason, "%s (mask 0x%08x) was reached by lane %u, which is not in its mask", name_of(at),
                 mask, lane);
        refuse(reason);
    }
    wait(at, mask);
    current->value = value, current->from = from;
    waiting_lanes[warp] |= 1u << lane;
    release_lanes(warp, at, mask);
    give_way(current->context, scheduler);
    return current->result;
}

// --- orders ---------------------------------------------------------------------------------------------

static uint64 randomness;

static unsigned random_below(unsigned bound) {  // splitmix64
    uint64 z = randomness += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return unsigned(((z ^ z >> 31) >> 32) * bound >> 32);
}

// 0: forward; 1: reversed; else any.
template <class T>
static void arrange(T* order, unsigned count, uint64 seed) {
    for (unsigned i = 0; i < count; ++i) order[i] = T(seed == 1 ? count - 1 - i : i);
    if (seed < 2) return;
    for (unsigned i = count; i > 1; --i) {
        const unsigned j = random_below(i);
        const T last = order[i - 1];
        order[i - 1] = order[j], order[j] = last;
    }
}

// --- shared memory --------------------------------------------------------------------------------------

struct Shared {  // this library's thread-local variables
    size_t size, anchor;  // where the anchor is among them: the same in every thread
};

static thread_local char shared_anchor;

static int find_shared(dl_phdr_info* library, size_t, void* result) {
    const ElfW(Phdr)* tls = nullptr;
    bool mine = false;
    for (int i = 0; i < library->dlpi_phnum; ++i) {
        const ElfW(Phdr)& part = library->dlpi_phdr[i];
        if (part.p_type == PT_TLS) tls = &part;
        if (part.p_type == PT_LOAD) mine |= uintptr_t(fibers) - (library->dlpi_addr + part.p_vaddr) < part.p_memsz;
    }
    if (!mine || tls == nullptr) return 0;
    const char* first = static_cast<const char*>(library->dlpi_tls_data);
    *static_cast<Shared*>(result) = {size_t(tls->p_memsz), size_t(&shared_anchor - first)};
    return 1;
}

// Unwritten shared memory shall not look like zeros: floats there are NaN.
static void poison_shared() {
    static Shared shared = {0, 0};
    shared_anchor = 0;  // a thread gets its variables when it first touches them
    if (shared.size == 0) dl_iterate_phdr(find_shared, &shared);
    memset(&shared_anchor - shared.anchor, 0xFF, shared.size);
}

// --- a block --------------------------------------------------------------------------------------------

static void fiber() {
    entered(scheduler);
    kernel->run(arguments);
    current->state = ENDED;
    ++ended;
    give_way(current->context, scheduler);
}

static bool begin_block() {
    for (unsigned i = 0; i < threads; ++i) {
        char* const bottom = stack(i, LARGEST_BLOCK);
        if (bottom == nullptr) return false;
        const size_t stagger = i % 16 * 192;  // for the sake of the first-level cache
        prepare(fibers[i].context, bottom, STACK - stagger, fiber);
        fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        fibers[i].state = READY;
    }
    memset(waiting_lanes, 0, sizeof waiting_lanes);
    waiting_for_block = ended = 0;
    poison_shared();
    return true;
}

// Every lane of a warp that can, once; whether there was one.
static bool run_warp(unsigned warp, const unsigned char* lanes) {
    bool any = false;
    for (unsigned i = 0; i < WARP && error[0] == 0; ++i) {
        const unsigned thread = warp * WARP + lanes[i];
        if (thread >= threads || fibers[thread].state != READY) continue;
        any = true;
        current = &fibers[thread];
        threadIdx = current->index;
        give_way(scheduler, current->context);
    }
    return any;
}

// Warp after warp. In any order but the first two, some run to where they need the others before those go on: a barrier
// that is missing, even the second of two, then lets a warp write what another has still to read.
static void run_block(uint64 seed) {
    unsigned char warps[LARGEST_BLOCK / WARP], lanes[WARP];
    if (!begin_block()) return report("no memory for stacks");
    const unsigned count = (threads + WARP - 1) / WARP;
    arrange(warps, count, seed);
    arrange(lanes, WARP, seed);
    while (error[0] == 0 && ended < threads) {
        bool any = false;
        for (unsigned i = 0; i < count; ++i) {
            const bool far = seed > 1 && random_below(2) == 0;
            while (run_warp(warps[i], lanes)) {
                any = true;
                if (!far) break;
            }
            if (seed > 1) arrange(lanes, WARP, seed);
        }
        if (waiting_for_block == threads) {
            release_block();
        } else if (!any && error[0] == 0) {
            report_deadlock();
        }
        if (seed > 1) arrange(warps, count, seed);
    }
}

static void run_grid(uint64 seed) {
    std::vector<unsigned> order(size_t(gridDim.x) * gridDim.y * gridDim.z);
    arrange(order.data(), unsigned(order.size()), seed);
    for (size_t i = 0; i < order.size() && error[0] == 0; ++i) {
        const unsigned block = order[i];
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        run_block(seed);
    }
}

}  // namespace cuda_on_cpu

// Runs kernel `index` on a grid of sizes[0..2] blocks of sizes[3..5] threads. Returns null, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_launch(
    const cuda_on_cpu::Kernel* kernel, const unsigned* sizes, void* const* arguments, unsigned long long seed) {
    using namespace cuda_on_cpu;
    fenv_t environment;  // the caller may flush subnormal numbers; GPUs do not
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    cuda_on_cpu::kernel = kernel, cuda_on_cpu::arguments = arguments;
    gridDim = {sizes[0], sizes[1], sizes[2]}, blockDim = {sizes[3], sizes[4], sizes[5]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    randomness = seed;
    error[0] = 0;
    run_grid(seed);
    fesetenv(&environment);
    return error[0] == 0 ? nullptr : error;
}
