// What the CPU sources share: compilation for several instruction sets, and when to use threads.
//
// Build folders are shared between machines, so the library must run on any of them: functions
// marked CLONED are compiled for three x86-64 levels, and the loader picks one. They only touch
// plain arrays, and what they call must be inlined into them (INLINE) to be compiled likewise.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif
#define INLINE __attribute__((always_inline)) inline

namespace {
constexpr int64_t kGrain = 32768;  // pixels that are worth waking a thread
}
