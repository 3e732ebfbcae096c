// The diffusion steps: argument checks, and the choice of CPU or CUDA. What cannot be right raises
// ValueError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "ddim/ddim.h"
#include "dispatch.h"
#include "python/tensor_view.h"

namespace py = pybind11;

namespace splatdistill::python {
namespace {

using ddim::DType;
using Element = TensorView::Element;

[[noreturn]] void refuse(const char* name, const std::string& expected, const TensorView& got) {
    throw py::value_error(std::string(name) + " must be " + expected + ", got " + got.describe());
}

void run_cpu(const ddim::Step& op, int threads) { kernels().step(op, threads); }
void run_cpu(const ddim::Residual& op, int threads) { kernels().residual(op, threads); }
void run_cpu(const ddim::Recover& op, int threads) { kernels().recover(op, threads); }

// Checks the arguments of one call against its x_t [B, ...].
class Arguments {
  public:
    explicit Arguments(const TensorView& x_t) : x_t_(x_t) {
        const bool floating = x_t.element <= Element::bf16;
        if (x_t.ndim < 2 || !floating || !x_t.contiguous)
            refuse("x_t", "contiguous [B, C, h, w] in float32, float16 or bfloat16 on cpu or cuda", x_t);
        if (x_t.cuda && x_t.shape[0] > 65535) refuse("x_t", "at most 65535 samples", x_t);
    }

    void* like_x_t(const TensorView& tensor, const char* name) const {
        if (!tensor.same_shape(x_t_) || !fits(tensor, x_t_.element))
            refuse(name, "like x_t, " + x_t_.describe(), tensor);
        return tensor.data;
    }

    float* parameters(const TensorView& tensor, std::initializer_list<int64_t> shape,
                      const char* name) const {
        if (!tensor.has_shape(shape) || !fits(tensor, Element::f32)) {
            std::string text;
            for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
            refuse(name, "contiguous [" + text + "] float32 on the device of x_t", tensor);
        }
        return static_cast<float*>(tensor.data);
    }

    ddim::Batch batch(const TensorView& coefficients, int64_t columns) const {
        const int64_t samples = x_t_.shape[0];
        const DType dtype = x_t_.element == Element::f32   ? DType::f32
                            : x_t_.element == Element::f16 ? DType::f16
                                                           : DType::bf16;
        const float* values = parameters(coefficients, {samples, columns}, "coefficients");
        return {dtype, samples, samples ? x_t_.numel() / samples : 0, values};
    }

    ddim::Guidance guidance(const TensorView& outputs, const TensorView& weights, bool perp_neg) const {
        const int64_t branches = outputs.shape[0], least = perp_neg ? 2 : 1;
        bool shaped = outputs.ndim == x_t_.ndim + 1 && branches >= least && branches <= ddim::kMaxBranches;
        for (int i = 0; shaped && i < x_t_.ndim; ++i) shaped = outputs.shape[i + 1] == x_t_.shape[i];
        if (!shaped || !fits(outputs, x_t_.element))
            refuse("outputs", "[R, ...x_t] with R from 1 (perp-neg: 2) to 16, x_t being " + x_t_.describe(),
                   outputs);
        return {outputs.data, parameters(weights, {branches, x_t_.shape[0]}, "weights"), int(branches),
                perp_neg};
    }

    // `stream`: the CUDA stream's handle; `threads`: of the CPU, where the work is worth more than one.
    template <class Op>
    void run(const Op& op, [[maybe_unused]] uintptr_t stream, int threads) const {
        constexpr int64_t kBriefElements = 32768;
        const int64_t elements = op.batch.samples * op.batch.size;
        if (x_t_.cuda) {
#if defined(SPLATDISTILL_CUDA)
            const char* error = nullptr;
            if (elements) {
                const py::gil_scoped_release release;
                error = run_cuda(op, x_t_.device, reinterpret_cast<void*>(stream));
            }
            if (error) throw std::runtime_error(std::string("splatdistill CUDA kernel: ") + error);
#else
            refuse("x_t", "on cpu, since the extension was built without CUDA", x_t_);
#endif
        } else if (elements < kBriefElements) {  // the GIL is kept: to let go of it costs as much as the work
            run_cpu(op, 1);
        } else {
            const py::gil_scoped_release release;
            run_cpu(op, threads);
        }
    }

  private:
    bool fits(const TensorView& t, Element element) const {
        return t.contiguous && t.element == element && t.cuda == x_t_.cuda &&
               (!t.cuda || t.device == x_t_.device);
    }

    const TensorView& x_t_;
};

void ddim_step(const TensorView& x_t, const TensorView& outputs, const TensorView& weights,
               const TensorView& coefficients, const std::optional<TensorView>& noise, bool perp_neg,
               const TensorView& x_next, uintptr_t stream, int threads) {
    const Arguments arguments(x_t);
    const ddim::Step op{arguments.batch(coefficients, 7), arguments.guidance(outputs, weights, perp_neg),
                        x_t.data, noise ? arguments.like_x_t(*noise, "noise") : nullptr,
                        arguments.like_x_t(x_next, "x_next")};
    arguments.run(op, stream, threads);
}

void noise_residual(const TensorView& x_t, const TensorView& outputs, const TensorView& weights,
                    const TensorView& coefficients, const TensorView& noise, bool perp_neg,
                    const TensorView& gradient, const TensorView& x0_hat, const TensorView& norms,
                    uintptr_t stream, int threads) {
    const Arguments arguments(x_t);
    const ddim::Residual op{arguments.batch(coefficients, 5),
                            arguments.guidance(outputs, weights, perp_neg),
                            x_t.data,
                            arguments.like_x_t(noise, "noise"),
                            arguments.like_x_t(gradient, "gradient"),
                            arguments.like_x_t(x0_hat, "x0_hat"),
                            arguments.parameters(norms, {x_t.shape[0]}, "norms")};
    arguments.run(op, stream, threads);
}

void recover_noise(const TensorView& x_0, const TensorView& x_t, const TensorView& coefficients,
                   const TensorView& eps, const TensorView& x_next, uintptr_t stream, int threads) {
    const Arguments arguments(x_t);
    const ddim::Recover op{arguments.batch(coefficients, 4), arguments.like_x_t(x_0, "x_0"), x_t.data,
                           arguments.like_x_t(eps, "eps"), arguments.like_x_t(x_next, "x_next")};
    arguments.run(op, stream, threads);
}

}  // namespace

void bind_ddim(py::module_& m) {
    m.def("ddim_step", &ddim_step);
    m.def("noise_residual", &noise_residual);
    m.def("recover_noise", &recover_noise);
}

}  // namespace splatdistill::python
