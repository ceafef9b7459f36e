// Fibers: stacks, and how one gives way to another. Assembler on x86-64; ucontext elsewhere, or where
// CUDA_ON_CPU_UCONTEXT is defined, which is ten times slower, as it asks the kernel for the signal mask.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT 1
#endif

#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__  // it has to be notified of every switch
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 256 << 10;  // frames are larger
#else
constexpr size_t STACK = 64 << 10;
#endif

struct Context {
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t saved;
#else
    void* stack_pointer;
#endif
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    void* fake_stack;
#endif
};

// --- stacks ---------------------------------------------------------------------------------------------

// The lowest address of stack `i`, of `count`. Below it is a page that nobody may touch: too deep a stack is a crash,
// not a riddle. The distance of two stacks is no power of two, lest their tops compete for the same lines of a cache.
inline char* stack(size_t i, size_t count) {
    static char* first = nullptr;
    static size_t guarded = 0;
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), pitch = STACK + page;
    if (first == nullptr) {
        void* all = mmap(nullptr, pitch * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
        if (all == MAP_FAILED) return nullptr;
        first = static_cast<char*>(all);
    }
    for (; guarded <= i; ++guarded) mprotect(first + guarded * pitch, page, PROT_NONE);
    return first + i * pitch + page;
}

// --- switching ------------------------------------------------------------------------------------------

#ifdef CUDA_ON_CPU_UCONTEXT

inline void set_up(Context& context, char* bottom, size_t size, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = bottom;
    context.saved.uc_stack.ss_size = size;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
}

inline void swap(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

#else

// Saves what the ABI wants kept on this stack and goes on with what is saved on the other. The floating-point control
// words are the same for all fibers. It jumps, for a processor foresees where a `ret` leads from calls on this stack.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from: rdi*/, void* /*to: rsi*/) {
    __asm__(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "popq %rcx\n jmp *%rcx\n");
}

inline void set_up(Context& context, char* bottom, size_t size, void (*entry)()) {
    uintptr_t* top = reinterpret_cast<uintptr_t*>(uintptr_t(bottom + size) & ~uintptr_t(15));
    *--top = 0;                           // entry never returns
    *--top = uintptr_t(entry);            // here the stack is aligned to 16 bytes, as the ABI wants it before a call
    for (int i = 0; i < 6; ++i) *--top = 0;  // the registers
    context.stack_pointer = top;
}

inline void swap(Context& from, Context& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }

#endif

// --- the same, with AddressSanitizer notified ---------------------------------------------------------------

// A fiber that will begin with entry(), which must call entered() first.
inline void prepare(Context& context, char* bottom, size_t size, void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(bottom, size);  // of frames that were never left
    context.bottom = bottom, context.size = size, context.fake_stack = nullptr;
#endif
    set_up(context, bottom, size, entry);
}

inline void entered([[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

inline void give_way(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
    swap(from, to);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace cuda_on_cpu
