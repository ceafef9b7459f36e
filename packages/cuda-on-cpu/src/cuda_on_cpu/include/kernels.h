// From a kernel's address to what the host needs: a call that takes its arguments as cuLaunchKernel does.

#pragma once

#include "runtime.h"

#include <type_traits>
#include <utility>

namespace cuda_on_cpu {

// A letter of Python's struct module. Addresses and long are 8 bytes.
template <class T>
constexpr char letter() {
    if constexpr (std::is_enum_v<T>) {
        return letter<std::underlying_type_t<T>>();
    } else if constexpr (std::is_same_v<T, bool>) {
        return '?';
    } else if constexpr (std::is_floating_point_v<T>) {
        return sizeof(T) == 4 ? 'f' : 'd';
    } else if constexpr (std::is_pointer_v<T>) {
        return 'Q';
    } else {
        static_assert(std::is_integral_v<T>, "a kernel's parameters are numbers and pointers");
        constexpr int size = sizeof(T) == 8 ? 3 : sizeof(T) == 4 ? 2 : sizeof(T) == 2 ? 1 : 0;
        return (std::is_signed_v<T> ? "bhiq" : "BHIQ")[size];
    }
}

template <auto F>
struct Trampoline;

template <class... Parameters, void (*F)(Parameters...)>
struct Trampoline<F> {
    static constexpr char types[] = {letter<Parameters>()..., 0};

    static void run(void* const* arguments) { run(arguments, std::index_sequence_for<Parameters...>()); }

    template <size_t... I>
    static void run([[maybe_unused]] void* const* arguments, std::index_sequence<I...>) {
        F(*static_cast<Parameters*>(arguments[I])...);
    }
};

}  // namespace cuda_on_cpu

// The list of a library's kernels, which follows their source.
#define CUDA_ON_CPU_KERNELS \
    extern "C" __attribute__((visibility("default"))) const cuda_on_cpu::Kernel cuda_on_cpu_kernels[]

// An entry; the expression may have commas.
#define CUDA_ON_CPU_KERNEL(name, ...) \
    {name, cuda_on_cpu::Trampoline<(&__VA_ARGS__)>::types, cuda_on_cpu::Trampoline<(&__VA_ARGS__)>::run}
