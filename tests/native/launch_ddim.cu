// Every CUDA kernel of the diffusion steps on arrays of exactly its size, aligned and not: for
// compute-sanitizer.
//
//     nvcc -std=c++17 -O3 -arch=sm_90 -Icsrc tests/native/launch_ddim.cu csrc/ddim/ddim_cuda.cu -o
//     launch_ddim compute-sanitizer --tool memcheck --error-exitcode 9 ./launch_ddim
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "ddim/ddim.h"

namespace {

using namespace splatdistill::ddim;

void expect(const char* error) {
    if (!error) return;
    std::printf("%s\n", error);
    std::exit(1);
}

void expect(cudaError_t error) { expect(error == cudaSuccess ? nullptr : cudaGetErrorString(error)); }

// `size` elements, `shift` bytes after an allocation begins and up to its end; filled where they are read.
class Array {
  public:
    Array(size_t size, size_t wide, size_t shift, bool read) : shift_(shift) {
        expect(cudaMalloc(&base_, size * wide + shift));
        if (!read) return;
        std::vector<uint16_t> values(size * wide / 2);
        static std::mt19937 random(0);
        for (uint16_t& value : values)
            value = uint16_t(0x3800 + random() % 0x400);  // near 1 in all three types
        expect(cudaMemcpy(at(), values.data(), size * wide, cudaMemcpyHostToDevice));
    }
    Array(const Array&) = delete;
    ~Array() { cudaFree(base_); }
    template <class T = void>
    T* at() const {
        return reinterpret_cast<T*>(static_cast<char*>(base_) + shift_);
    }

  private:
    void* base_ = nullptr;
    size_t shift_;
};

void launch(DType dtype, int64_t samples, int64_t size, int branches, bool perp_neg, bool shifted) {
    const size_t wide = dtype == DType::f32 ? 4 : 2, shift = shifted ? wide : 0, all = samples * size;
    const Array first(all, wide, shift, true), second(all, wide, shift, true);
    const Array outputs(branches * all, wide, shift, true), weights(branches * samples, 4, 0, true);
    const Array coefficients(7 * samples, 4, 0, true), norms(samples, 4, 0, false);
    const Array out(all, wide, shift, false), out_2(all, wide, shift, false);
    const Batch batch{dtype, samples, size, coefficients.at<float>()};
    const Guidance guidance{outputs.at(), weights.at<float>(), branches, perp_neg};
    expect(run_cuda(Step{batch, guidance, first.at(), nullptr, out.at()}, 0, nullptr));
    expect(run_cuda(Step{batch, guidance, first.at(), second.at(), out.at()}, 0, nullptr));
    const Residual residual{batch,    guidance,   first.at(),       second.at(),
                            out.at(), out_2.at(), norms.at<float>()};
    expect(run_cuda(residual, 0, nullptr));
    expect(run_cuda(Recover{batch, first.at(), second.at(), out.at(), out_2.at()}, 0, nullptr));
    expect(cudaDeviceSynchronize());
}

}  // namespace

int main() {
    int launched = 0;
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
        for (const int64_t size : {1, 105, 256, 1600, 16384})
            for (const int branches : {1, 2, 4, kMaxBranches})
                for (const bool perp_neg : {false, true})
                    for (const bool shifted : {false, true}) {
                        if (perp_neg && branches < 2) continue;
                        launch(dtype, 3, size, branches, perp_neg, shifted);
                        ++launched;
                    }
    launch(DType::f32, 1, 4096 * 256 * 4 + 4 * 777 + 1, 2, false, false);  // more chunks than blocks
    std::printf("%d cases\n", launched + 1);
}
