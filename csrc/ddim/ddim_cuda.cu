// CUDA launchers. No allocation and no synchronization: every call can be captured in a CUDA graph.
//
// Plain steps spread the elements over the grid; what needs a sum over a sample (perp-neg, norms) gives each
// sample one block, which sums in a fixed order, so results repeat bit for bit.
#include <initializer_list>

#include "ddim/ddim.h"
#include "ddim/ddim_math.h"

namespace splatdistill::ddim {
namespace {

constexpr int kWide = 512;  // threads of a block that owns a sample: several of them fill a multiprocessor
constexpr int kFlat = 256;

// Makes `device` current for a launch and restores the caller's.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device) {
        cudaGetDevice(&before_);
        cudaSetDevice(device);  // also when it looks current: torch sets devices through its own runtime
    }
    ~DeviceGuard() {
        if (device_ != before_) cudaSetDevice(before_);
    }

  private:
    int device_, before_ = 0;
};

// Returns null, or CUDA's message for a launch that failed.
template <class Op>
const char* launch(void (*kernel)(Op), dim3 grid, int threads, void* stream, Op op) {
    void* arguments[] = {&op};
    cudaLaunchKernel(kernel, grid, dim3(unsigned(threads)), arguments, 0, static_cast<cudaStream_t>(stream));
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// N elements moved as one access; N T is at most 16 bytes.
template <int N, class T>
struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

template <int N, class T>
__device__ Pack<N, T> load_pack(const T* from) {
    return *reinterpret_cast<const Pack<N, T>*>(from);
}

template <int N, class T>
__device__ void store_pack(T* to, const Pack<N, T>& pack) {
    *reinterpret_cast<Pack<N, T>*>(to) = pack;
}

// The guided output of N neighboring elements. R > 0 fixes the number of branches at compile time: then W
// stays in registers, and the loads are in flight together.
template <int N, int R, class T>
__device__ void guided_pack(const T* o, int64_t stride, int branches, const float* W, float* e) {
    const Pack<N, T> o_0 = load_pack<N>(o);
#pragma unroll
    for (int k = 0; k < N; ++k) e[k] = W[0] * load(o_0.at[k]);
#pragma unroll(R > 0 ? R : 1)
    for (int r = 1; r < (R > 0 ? R : branches); ++r) {
        const Pack<N, T> o_r = load_pack<N>(o + r * stride);
#pragma unroll
        for (int k = 0; k < N; ++k) e[k] += W[r] * (load(o_r.at[k]) - load(o_0.at[k]));
    }
}

// Sum over the block in a fixed order; every thread gets the result.
__device__ float block_sum(float value) {
    __shared__ float warps[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    __syncthreads();  // the previous sum has been read
    if (lane == 0) warps[warp] = value;
    __syncthreads();
    value = lane < int(blockDim.x) / 32 ? warps[lane] : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    return value;
}

// All threads of the block that owns sample b get its effective weights in W.
template <class T>
__device__ void sample_weights(const Guidance& g, const Batch& batch, int64_t b, const T* o, float* W) {
    if (!g.perp_neg) return linear_weights(g.weights + b, batch.samples, g.branches, W);
    const int64_t stride = batch.samples * batch.size;
    float dots[kMaxBranches];
    for (int r = 1; r < g.branches; ++r) {
        float sum = 0.0f;
        for (int64_t i = threadIdx.x; i < batch.size; i += blockDim.x) {
            const float o_0 = load(o[i]);
            sum += (load(o[r * stride + i]) - o_0) * (load(o[stride + i]) - o_0);
        }
        dots[r] = block_sum(sum);
    }
    perp_neg_weights(g.weights + b, batch.samples, g.branches, dots, W);
}

// Classifier-free guidance, the usual step. grid (chunks, B), one access of every tensor a thread: no loop
// keeps the weights and coefficients from loading beside the elements.
template <int N, class T>
__global__ void __launch_bounds__(kFlat) cfg_step_kernel(Step op) {
    const int64_t b = blockIdx.y, size = op.batch.size;
    const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N, at = b * size + i;
    if (i >= size) return;
    float W[2], e[N];
    linear_weights(op.guidance.weights + b, op.batch.samples, 2, W);
    const StepFactors f = step_factors(op.batch.coefficients + 7 * b);
    guided_pack<N, 2>(static_cast<const T*>(op.guidance.outputs) + at, op.batch.samples * size, 2, W, e);
    const Pack<N, T> x = load_pack<N>(static_cast<const T*>(op.x_t) + at);
    Pack<N, T> out, n = x;
    if (op.noise) n = load_pack<N>(static_cast<const T*>(op.noise) + at);
#pragma unroll
    for (int k = 0; k < N; ++k)
        store(out.at[k], f.x * load(x.at[k]) + f.m * e[k] + (op.noise ? f.noise * load(n.at[k]) : 0.0f));
    store_pack<N>(static_cast<T*>(op.x_next) + at, out);
}

// Any other guidance. grid (chunks, B); with perp-neg one chunk, since the block must see its whole sample.
template <int N, class T>
__global__ void __launch_bounds__(kWide) step_kernel(Step op) {
    const int64_t b = blockIdx.y, size = op.batch.size, stride = op.batch.samples * size;
    const T* o = static_cast<const T*>(op.guidance.outputs) + b * size;
    const T* x_t = static_cast<const T*>(op.x_t) + b * size;
    const T* noise = op.noise ? static_cast<const T*>(op.noise) + b * size : nullptr;
    T* x_next = static_cast<T*>(op.x_next) + b * size;
    float W[kMaxBranches];
    sample_weights(op.guidance, op.batch, b, o, W);
    const StepFactors f = step_factors(op.batch.coefficients + 7 * b);
    const int64_t hop = int64_t(gridDim.x) * blockDim.x * N;
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < size; i += hop) {
        float e[N];
        guided_pack<N, 0>(o + i, stride, op.guidance.branches, W, e);
        const Pack<N, T> x = load_pack<N>(x_t + i);
        Pack<N, T> out, n = x;
        if (noise) n = load_pack<N>(noise + i);
#pragma unroll
        for (int k = 0; k < N; ++k)
            store(out.at[k], f.x * load(x.at[k]) + f.m * e[k] + (noise ? f.noise * load(n.at[k]) : 0.0f));
        store_pack<N>(x_next + i, out);
    }
}

// grid (1, B): the norm needs the whole sample. R is 2 for classifier-free guidance, 0 for any other.
template <int N, int R, class T>
__global__ void __launch_bounds__(kWide) residual_kernel(Residual op) {
    const int64_t b = blockIdx.y, size = op.batch.size, stride = op.batch.samples * size;
    const T* o = static_cast<const T*>(op.guidance.outputs) + b * size;
    const T* x_t = static_cast<const T*>(op.x_t) + b * size;
    const T* noise = static_cast<const T*>(op.noise) + b * size;
    T* gradient = static_cast<T*>(op.gradient) + b * size;
    T* x0_hat = static_cast<T*>(op.x0_hat) + b * size;
    const float* c = op.batch.coefficients + 5 * b;
    float W[R > 0 ? R : kMaxBranches], sum = 0.0f;
    if constexpr (R > 0)
        linear_weights(op.guidance.weights + b, op.batch.samples, R, W);
    else
        sample_weights(op.guidance, op.batch, b, o, W);
#pragma unroll 2
    for (int64_t i = int64_t(threadIdx.x) * N; i < size; i += int64_t(blockDim.x) * N) {
        float e[N];
        guided_pack<N, R>(o + i, stride, op.guidance.branches, W, e);
        const Pack<N, T> x = load_pack<N>(x_t + i), n = load_pack<N>(noise + i);
        Pack<N, T> g, x0;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float value = residual(c, load(x.at[k]), e[k], load(n.at[k]));
            sum += value * value;
            store(g.at[k], value);
            store(x0.at[k], clean(c, load(x.at[k]), e[k]));
        }
        store_pack<N>(gradient + i, g);
        store_pack<N>(x0_hat + i, x0);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) op.norms[b] = sqrtf(sum);
}

// grid (chunks, B).
template <int N, class T>
__global__ void __launch_bounds__(kFlat) recover_kernel(Recover op) {
    const int64_t b = blockIdx.y, size = op.batch.size;
    const float* c = op.batch.coefficients + 4 * b;
    const int64_t hop = int64_t(gridDim.x) * blockDim.x * N;
    for (int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < size; i += hop) {
        const Pack<N, T> x_0 = load_pack<N>(static_cast<const T*>(op.x_0) + b * size + i);
        const Pack<N, T> x_t = load_pack<N>(static_cast<const T*>(op.x_t) + b * size + i);
        Pack<N, T> eps, x_next;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const float e = recovered(c, load(x_0.at[k]), load(x_t.at[k]));
            store(eps.at[k], e);
            store(x_next.at[k], renoised(c, load(x_0.at[k]), e));
        }
        store_pack<N>(static_cast<T*>(op.eps) + b * size + i, eps);
        store_pack<N>(static_cast<T*>(op.x_next) + b * size + i, x_next);
    }
}

template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls body(element, width): 16 bytes an access where every row starts on 16 bytes, single elements
// elsewhere.
template <class F>
const char* with_layout(const Batch& batch, std::initializer_list<const void*> pointers, F&& body) {
    const int bytes = batch.dtype == DType::f32 ? 4 : 2;
    bool aligned = batch.size * bytes % 16 == 0;
    for (const void* pointer : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    if (batch.dtype == DType::f32) return aligned ? body(float{}, Width<4>{}) : body(float{}, Width<1>{});
    if (batch.dtype == DType::f16) return aligned ? body(Half{}, Width<8>{}) : body(Half{}, Width<1>{});
    return aligned ? body(BFloat16{}, Width<8>{}) : body(BFloat16{}, Width<1>{});
}

bool is_cfg(const Guidance& g) { return g.branches == 2 && !g.perp_neg; }

dim3 flat_grid(const Batch& batch, int width) {
    const int64_t chunks = (batch.size + int64_t(kFlat) * width - 1) / (int64_t(kFlat) * width);
    return dim3(unsigned(chunks < 4096 ? chunks : 4096), unsigned(batch.samples));
}

}  // namespace

const char* run_cuda(const Step& op, int device, void* stream) {
    const DeviceGuard guard(device);
    const void* const x_next = op.x_next;
    return with_layout(
        op.batch, {op.guidance.outputs, op.x_t, op.noise, x_next}, [&](auto element, auto width) {
            using T = decltype(element);
            constexpr int N = decltype(width)::value;
            if (is_cfg(op.guidance)) {
                const int64_t chunks = (op.batch.size + int64_t(kFlat) * N - 1) / (int64_t(kFlat) * N);
                return launch(cfg_step_kernel<N, T>, dim3(unsigned(chunks), unsigned(op.batch.samples)),
                              kFlat, stream, op);
            }
            const bool whole = op.guidance.perp_neg;
            const dim3 grid = whole ? dim3(1, unsigned(op.batch.samples)) : flat_grid(op.batch, width.value);
            return launch(step_kernel<N, T>, grid, whole ? kWide : kFlat, stream, op);
        });
}

const char* run_cuda(const Residual& op, int device, void* stream) {
    const DeviceGuard guard(device);
    const void *const gradient = op.gradient, *const x0_hat = op.x0_hat;
    return with_layout(
        op.batch, {op.guidance.outputs, op.x_t, op.noise, gradient, x0_hat}, [&](auto element, auto width) {
            using T = decltype(element);
            constexpr int N = decltype(width)::value;
            const auto kernel = is_cfg(op.guidance) ? residual_kernel<N, 2, T> : residual_kernel<N, 0, T>;
            return launch(kernel, dim3(1, unsigned(op.batch.samples)), kWide, stream, op);
        });
}

const char* run_cuda(const Recover& op, int device, void* stream) {
    const DeviceGuard guard(device);
    const void *const eps = op.eps, *const x_next = op.x_next;
    return with_layout(op.batch, {op.x_0, op.x_t, eps, x_next}, [&](auto element, auto width) {
        const dim3 grid = flat_grid(op.batch, width.value);
        return launch(recover_kernel<width.value, decltype(element)>, grid, kFlat, stream, op);
    });
}

}  // namespace splatdistill::ddim
