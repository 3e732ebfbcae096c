// The CUDA kernels of the diffusion steps for Python's ctypes, run by the emulation. Every array is copied to
// where it ends at a page that may not be touched; inputs may not be written, and nothing before an output
// may.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "cuda_emulation.h"
// after the emulation
#include "ddim/ddim_cuda.cu"

namespace {

using namespace splatdistill::ddim;

class Guarded {
  public:
    // `shift` bytes before the end: pointers that are aligned for nothing but an element.
    Guarded(void* array, size_t bytes, size_t shift, bool written) : array_(array), bytes_(bytes) {
        if (!array) return;
        const size_t page = size_t(sysconf(_SC_PAGESIZE)), pages = (bytes + shift + page - 1) / page;
        size_ = (pages + 1) * page;
        base_ = static_cast<char*>(
            mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED) std::abort();
        std::memset(base_, kCanary, pages * page);
        data_ = base_ + pages * page - bytes - shift;
        shift_ = shift;
        if (!written) std::memcpy(data_, array, bytes);
        mprotect(base_ + pages * page, page, PROT_NONE);
        if (!written) mprotect(base_, pages * page, PROT_READ);
        written_ = written;
    }
    Guarded(const Guarded&) = delete;
    ~Guarded() {
        if (base_) munmap(base_, size_);
    }

    template <class T = void>
    T* at() const {
        return reinterpret_cast<T*>(data_);
    }

    // Copy an output back; whether nothing around it was touched.
    bool finish() const {
        if (!base_ || !written_) return true;
        std::memcpy(array_, data_, bytes_);
        for (const char* p = base_; p < data_; ++p)
            if (*p != kCanary) return false;
        for (const char* p = data_ + bytes_; p < data_ + bytes_ + shift_; ++p)
            if (*p != kCanary) return false;
        return true;
    }

  private:
    static constexpr char kCanary = 0x55;
    void* array_;
    size_t bytes_, size_ = 0, shift_ = 0;
    char *base_ = nullptr, *data_ = nullptr;
    bool written_ = false;
};

}  // namespace

// What one call needs; null where an operation has no such array.
struct Call {
    int operation;  // 0 step, 1 residual, 2 recover
    int dtype;      // 0 float32, 1 float16, 2 bfloat16
    int branches, perp_neg;
    int64_t samples, size;
    int shifted;                                              // arrays start one element off their alignment
    unsigned seed;                                            // of the order of threads
    void *coefficients, *outputs, *weights, *first, *second;  // first: x_t or x_0; second: noise or x_t
    void *out, *out_2, *norms;
};

extern "C" const char* emulate(const Call* call) {
    cuda_emulation::machine().random.seed(call->seed);
    const size_t element = call->dtype ? 2 : 4, tensor = size_t(call->samples * call->size) * element;
    const size_t shift = call->shifted ? element : 0, floats = size_t(call->samples) * sizeof(float);
    const size_t columns[] = {7, 5, 4};
    const Guarded coefficients(call->coefficients, columns[call->operation] * floats, 0, false);
    const Guarded outputs(call->outputs, size_t(call->branches) * tensor, shift, false);
    const Guarded weights(call->weights, size_t(call->branches) * floats, 0, false);
    const Guarded first(call->first, tensor, shift, false), second(call->second, tensor, shift, false);
    const Guarded out(call->out, tensor, shift, true), out_2(call->out_2, tensor, shift, true);
    const Guarded norms(call->norms, floats, 0, true);
    const Batch batch{DType(call->dtype), call->samples, call->size, coefficients.at<float>()};
    const Guidance guidance{outputs.at(), weights.at<float>(), call->branches, call->perp_neg != 0};
    const char* error = nullptr;
    if (call->operation == 0)
        error = run_cuda(Step{batch, guidance, first.at(), second.at(), out.at()}, 0, nullptr);
    else if (call->operation == 1)
        error = run_cuda(
            Residual{batch, guidance, first.at(), second.at(), out.at(), out_2.at(), norms.at<float>()}, 0,
            nullptr);
    else
        error = run_cuda(Recover{batch, first.at(), second.at(), out.at(), out_2.at()}, 0, nullptr);
    if (!out.finish() || !out_2.finish() || !norms.finish()) return "a kernel wrote outside its arrays";
    return error;
}
