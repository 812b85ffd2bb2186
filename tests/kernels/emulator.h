// CUDA's execution model on one CPU thread, so that the kernels run on machines without a GPU.
//
// Blocks run one after another. Their threads are fibers, which run in an order drawn anew for each
// block and change places where CUDA makes them wait: __syncthreads and the *_sync operations. What
// hardware leaves undefined is an exception here: threads that wait for ever or leave others waiting,
// a mask without the caller, a launch beyond the limits, without a device guard, off the current
// stream or never checked, shared memory written past its end, a pack that is not aligned.
//
// Not shown: speed, races inside a warp, the ordering of memory. `__shared__` arrays of fixed size
// keep what the block before left in them; dynamic ones are filled with a pattern.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static

struct uint3 { unsigned x = 0, y = 0, z = 0; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };

namespace emulator {

constexpr int kLanes = 32, kStackBytes = 1 << 17, kGuardBytes = 64;
constexpr unsigned char kPattern = 0xa5;  // what memory holds before it is written

// ---- fibers ----

enum class State { ready, at_barrier, in_warp, done };
using Values = std::array<uint64_t, kLanes>;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  State state;
  const char* operation;  // warp-wide, with the mask and this lane's value; then all lanes' values
  unsigned mask;
  uint64_t value;
  Values seen;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int current = 0;
inline std::string failure;
inline std::mt19937 random;
inline uint3 thread_index, block_index;
inline dim3 block_size, grid_size;
inline void (*body)(const void*);
inline const void* closure;
inline unsigned char* shared = nullptr;

inline void wait(State state) {
  fibers[current].state = state;
  swapcontext(&fibers[current].context, &scheduler);
}

[[noreturn]] inline void fail(const std::string& what) {
  failure = what + " (block " + std::to_string(block_index.x) + ", thread " +
            std::to_string(current) + ")";
  for (;;) wait(State::done);  // the scheduler throws on its own stack
}

inline void run_fiber() {
  body(closure);
  wait(State::done);
}

inline void start(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &run_fiber, 0);
  fiber.state = State::ready;
}

// Waits for the lanes of `mask` and returns what each of them brought; lanes that left bring noise.
template <typename T>
std::array<T, kLanes> exchange(const char* operation, unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Fiber& self = fibers[current];
  if (!(mask >> current % kLanes & 1)) fail(std::string(operation) + ": the mask lacks the caller");
  self.operation = operation;
  self.mask = mask;
  std::memcpy(&self.value, &value, sizeof(T));
  const int first = current / kLanes * kLanes;
  const int lanes = std::min<int>(kLanes, fibers.size() - first);
  self.state = State::in_warp;
  Values values;
  values.fill(0xa5a5a5a5a5a5a5a5);
  bool complete = true;
  for (int i = 0; i < lanes; ++i) {
    const Fiber& other = fibers[first + i];
    if (!(mask >> i & 1) || other.state == State::done) continue;
    complete &= other.state == State::in_warp && other.mask == mask &&
                !std::strcmp(other.operation, operation);
    values[i] = other.value;
  }
  if (complete) {
    for (int i = 0; i < lanes; ++i) {
      Fiber& other = fibers[first + i];
      if (!(mask >> i & 1) || other.state == State::done) continue;
      other.state = State::ready;
      other.seen = values;
    }
  } else {
    wait(State::in_warp);
  }
  std::array<T, kLanes> result;
  for (int i = 0; i < kLanes; ++i) std::memcpy(&result[i], &self.seen[i], sizeof(T));
  return result;
}

// ---- launching ----

inline int guards = 0;
inline bool unchecked = false;
inline int stream_token;
struct Stream { int* token; };

inline void run_block(const std::vector<int>& order) {
  for (Fiber& fiber : fibers) start(fiber);
  for (bool ran = true; ran;) {
    ran = false;
    for (const int i : order) {
      if (fibers[i].state != State::ready) continue;
      current = i;
      const unsigned x = block_size.x, y = block_size.y;
      thread_index = {i % x, i / x % y, i / x / y};
      swapcontext(&scheduler, &fibers[i].context);
      TORCH_CHECK(failure.empty(), "CUDA emulator: ", failure);
      ran = true;
    }
    if (ran) continue;
    const auto all = [](State state) {
      return std::all_of(fibers.begin(), fibers.end(), [=](auto& f) { return f.state == state; });
    };
    if (all(State::done)) return;
    TORCH_CHECK(all(State::at_barrier), "CUDA emulator: threads wait for ever");
    for (Fiber& fiber : fibers) fiber.state = State::ready;
    ran = true;
  }
}

template <typename Body>
void run_grid(dim3 grid, dim3 threads, int64_t shared_bytes, Stream stream, const Body& call) {
  const auto must = [](bool holds, const char* what) { TORCH_CHECK(holds, "CUDA emulator: ", what); };
  must(!std::exchange(unchecked, false), "the launch before was not checked");
  must(stream.token == &stream_token, "launched on another stream than the current one");
  must(guards > 0, "launched without a device guard");
  must(grid.x && grid.y && grid.z && threads.x && threads.y && threads.z, "empty launch");
  must(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, "grid too large");
  must(uint64_t{threads.x} * threads.y * threads.z <= 1024 && threads.z <= 64, "block too large");
  must(shared_bytes >= 0 && shared_bytes <= 48 * 1024, "more than 48 KiB of shared memory");
  grid_size = grid;
  block_size = threads;
  closure = &call;
  body = [](const void* given) { (*static_cast<const Body*>(given))(); };
  fibers.resize(threads.x * threads.y * threads.z);
  failure.clear();
  std::vector<int> order(fibers.size());
  std::iota(order.begin(), order.end(), 0);
#ifdef __SANITIZE_ADDRESS__
  constexpr int guard_bytes = 0;  // the sanitizer watches both ends
#else
  constexpr int guard_bytes = kGuardBytes;
#endif
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[shared_bytes + guard_bytes]);
  shared = memory.get();
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
    block_index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    std::memset(shared, kPattern, shared_bytes + guard_bytes);
    std::shuffle(order.begin(), order.end(), random);
    run_block(order);
    must(std::all_of(shared + shared_bytes, shared + shared_bytes + guard_bytes,
                     [](unsigned char byte) { return byte == kPattern; }),
         "shared memory was written past its end");
  }
  unchecked = true;
}

// `kernel<<<these>>>(arguments)`: each thread gets copies of the arguments, as in CUDA.
template <typename Call>
auto launch(const Call& call, dim3 grid, dim3 threads, int64_t shared_bytes, Stream stream) {
  return [=](const auto&... arguments) {
    static_assert((0 + ... + sizeof(arguments)) <= 4096, "a launch passes 4 KiB of arguments");
    run_grid(grid, threads, shared_bytes, stream, [&] { call(arguments...); });
  };
}

}  // namespace emulator

#ifndef __SANITIZE_ADDRESS__
// With -fsanitize=alignment the compiler calls this where a pointer is not aligned, or null.
extern "C" __attribute__((visibility("hidden"))) void
__ubsan_handle_type_mismatch_v1_abort(void*, void*) {
  emulator::fail("an access is not aligned");
}
#endif

// ---- device functions: those that the kernels use ----

#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define gridDim (::emulator::grid_size)

using std::isfinite, std::max, std::min;

inline void __syncthreads() { emulator::wait(emulator::State::at_barrier); }
inline void __syncwarp(unsigned mask = 0xffffffff) { emulator::exchange("syncwarp", mask, 0); }
inline unsigned __ballot_sync(unsigned mask, bool value) {
  const auto values = emulator::exchange("ballot", mask, static_cast<unsigned>(value));
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (mask >> i & values[i] & 1) << i;
  return bits;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulator::exchange("shfl", mask, value)[lane & 31];
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta) {
  const int lane = emulator::current % 32;
  return emulator::exchange("shfl_up", mask, value)[lane < delta ? lane : lane - delta];
}
template <typename T>
T atomicAdd(T* address, T value) {
  return std::exchange(*address, *address + value);
}
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
template <typename To, typename From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t both = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  }
  return result;
}
template <int bits, typename Use>
unsigned by_parts(unsigned a, unsigned b, const Use& use) {
  constexpr unsigned ones = (1u << bits) - 1;
  unsigned result = 0;
  for (int i = 0; i < 32; i += bits) result |= (use(a >> i & ones, b >> i & ones) & ones) << i;
  return result;
}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
  return by_parts<16>(a, b, [](unsigned x, unsigned y) { return x > y ? x : y; });
}
inline unsigned __vminu2(unsigned a, unsigned b) {
  return by_parts<16>(a, b, [](unsigned x, unsigned y) { return x < y ? x : y; });
}

// ---- the host's side ----

using cudaError_t = int;
constexpr int cudaSuccess = 0, cudaDevAttrMultiProcessorCount = 16;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  constexpr int some[] = {1, 2, 3, 132};
  *value = some[emulator::random() % 4];  // what is computed must not depend on it
  return cudaSuccess;
}
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() (::emulator::unchecked = false)

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(at::Device) { ++emulator::guards; }
  ~CUDAGuard() { --emulator::guards; }
};
inline emulator::Stream getCurrentCUDAStream() { return {&emulator::stream_token}; }
inline int current_device() { return 0; }
}  // namespace c10::cuda

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(name, key, library) \
  _TORCH_LIBRARY_IMPL(OPERATORS, CPU, library, C10_UID)
