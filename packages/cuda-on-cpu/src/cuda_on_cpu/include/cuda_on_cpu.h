// CUDA C++ for a CPU compiler: included before a kernel's source, it defines what NVRTC knows without any header.

#pragma once

#include "language.h"    // qualifiers, vectors, threadIdx and its like
#include "arithmetic.h"  // on one thread's numbers
#include "threads.h"     // barriers, shuffles, votes, atomics
#include "kernels.h"     // how the host finds and calls kernels
