// As much of CUDA as ddim_cuda.cu uses, on the CPU: included before it, the file compiles unchanged.
//
// The threads of a block are fibers. A fiber runs until it has to wait for others, at a barrier or in a
// shuffle; then a random one of those that can go on does. So what depends on the order of threads comes out
// as a result that depends on the seed, and threads that wait for one another for ever are found. Blocks run
// in turn.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static  // one block at a time

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorDeadlock };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

constexpr unsigned kWarp = 32;

struct Fiber {
    enum State { kReady, kAtBarrier, kInShuffle, kFinished } state = kReady;
    jmp_buf resume;  // swapcontext would cost two system calls
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    uint32_t given = 0, taken = 0;  // the value that a shuffle takes from this thread, and what it gets
    unsigned partner = 0;
    bool started = false;
};

class Machine {
  public:
    std::mt19937 random;
    cudaError_t last_error = cudaSuccess;
    int device = 0;

    void run_block(unsigned threads, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        while (fibers_.size() < threads) add_fiber();
        ready_.clear();
        for (unsigned i = 0; i < threads; ++i) make_ready(i);
        threads_ = threads, finished_ = at_barrier_ = 0;
        in_shuffle_.assign((threads + kWarp - 1) / kWarp, 0);
        while (!ready_.empty()) step();
        if (finished_ < threads_) {
            last_error = cudaErrorDeadlock;
            fibers_.clear();  // they will never end
        }
    }

    void barrier() {
        ++at_barrier_;
        wait(Fiber::kAtBarrier);
    }

    uint32_t exchange(uint32_t value, unsigned partner) {
        Fiber& me = *fibers_[current_];
        me.given = value, me.partner = partner;
        ++in_shuffle_[current_ / kWarp];
        wait(Fiber::kInShuffle);
        return me.taken;
    }

    unsigned thread() const { return current_; }

  private:
    // A fiber lives on from block to block.
    void add_fiber() {
        constexpr size_t kStack = 65536;
        fibers_.push_back(std::make_unique<Fiber>());
        Fiber& fiber = *fibers_.back();
        fiber.stack.reset(new char[kStack]);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = kStack;
        makecontext(&fiber.start, &Machine::enter, 0);
    }

    static void enter();

    void wait(Fiber::State state) {
        Fiber& me = *fibers_[current_];
        me.state = state;
        if (!_setjmp(me.resume)) _longjmp(scheduler_, 1);
    }

    void resume(Fiber& fiber) {
        if (_setjmp(scheduler_)) return;
        if (fiber.started) _longjmp(fiber.resume, 1);
        fiber.started = true;
        setcontext(&fiber.start);
    }

    // Let one thread run up to its next wait; release those whose wait that ends.
    void step() {
        const size_t pick = random() % ready_.size();
        current_ = ready_[pick];
        ready_[pick] = ready_.back();
        ready_.pop_back();
        threadIdx = dim3(current_);
        resume(*fibers_[current_]);
        const unsigned warp = current_ / kWarp, first = warp * kWarp;
        if (fibers_[current_]->state == Fiber::kFinished) ++finished_;
        if (in_shuffle_[warp] == kWarp) {  // every lane must take part, as the kernels' masks say
            in_shuffle_[warp] = 0;
            for (unsigned i = first; i < first + kWarp; ++i)
                fibers_[i]->taken = fibers_[fibers_[i]->partner]->given;
            for (unsigned i = first; i < first + kWarp; ++i) make_ready(i);
        }
        if (at_barrier_ && at_barrier_ == threads_ - finished_) {
            at_barrier_ = 0;
            for (unsigned i = 0; i < threads_; ++i)
                if (fibers_[i]->state == Fiber::kAtBarrier) make_ready(i);
        }
    }

    void make_ready(unsigned thread) {
        fibers_[thread]->state = Fiber::kReady;
        ready_.push_back(thread);
    }

    const std::function<void()>* kernel_ = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<unsigned> ready_, in_shuffle_;
    jmp_buf scheduler_;
    unsigned current_ = 0, threads_ = 0, finished_ = 0, at_barrier_ = 0;
};

inline Machine& machine() {
    static Machine one;
    return one;
}

inline void Machine::enter() {
    for (Machine& m = machine();;) {
        (*m.kernel_)();
        m.wait(Fiber::kFinished);
    }
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::machine().barrier(); }

inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
    if (mask != ~0u) std::abort();  // not needed so far
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    auto& machine = cuda_emulation::machine();
    bits = machine.exchange(bits, machine.thread() ^ unsigned(lanes));
    std::memcpy(&value, &bits, sizeof(bits));
    return value;
}

template <class Op>
cudaError_t cudaLaunchKernel(void (*kernel)(Op), dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
    auto& machine = cuda_emulation::machine();
    const unsigned threads = block.x * block.y * block.z;
    if (!threads || threads > 1024 || !grid.x || !grid.y || grid.y > 65535 || grid.z != 1)
        return machine.last_error = cudaErrorInvalidConfiguration;
    gridDim = grid, blockDim = block;
    const std::function<void()> body = [&] { kernel(*static_cast<const Op*>(arguments[0])); };
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            machine.run_block(threads, body);
        }
    return machine.last_error;
}

inline cudaError_t cudaGetDevice(int* device) {
    return *device = cuda_emulation::machine().device, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return cuda_emulation::machine().device = device, cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    return std::exchange(cuda_emulation::machine().last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorDeadlock ? "threads wait for one another" : "invalid configuration argument";
}
