// Python face of the diffusion steps: argument checks, results, GIL release, choice of CPU or CUDA.
//
// Each function allocates its results through torch and returns them. With `direct` it is called outside
// torch's dispatcher and returns None where something must see the call (autograd, a transform, a mode) or
// the tensors are not for these kernels; it always returns None for tensors that are not contiguous. The
// caller then goes through the dispatcher with contiguous copies. What cannot be right raises ValueError.
#include <initializer_list>

#include "ddim/ddim.h"
#include "ddim/ddim_math.h"
#include "python/tensor_view.h"

namespace py = pybind11;

namespace ddim {
namespace {

std::string describe(const TensorView& t) {
    std::string text = "[";
    for (int i = 0; i < t.ndim; ++i) text += (i ? ", " : "") + std::to_string(t.shape[i]);
    const char* dtype = t.dtype == DType::f32 ? "float32" : t.dtype == DType::f16 ? "float16" : "bfloat16";
    text += std::string("] ") + (t.floating ? dtype : "of another dtype or device");
    return text + (t.cuda ? " on cuda:" + std::to_string(t.device) : " on cpu");
}

[[noreturn]] void refuse(const char* name, const char* expected, const TensorView& got) {
    throw py::value_error(std::string(name) + " must be " + expected + ", got " + describe(got));
}

constexpr int64_t VECTOR = -1;
constexpr int64_t BRIEF_ELEMENTS = 32768;  // below this: one thread, and the GIL is kept

bool truth(py::handle function) {
    const py::object result = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(function.ptr()));
    if (!result) throw py::error_already_set();
    return result.ptr() != Py_False && PyObject_IsTrue(result.ptr()) == 1;
}

py::object call(py::handle function, py::handle argument) {
    py::object result =
        py::reinterpret_steal<py::object>(PyObject_CallOneArg(function.ptr(), argument.ptr()));
    if (!result) throw py::error_already_set();
    return result;
}

// Whether autograd, a dispatch mode or a functional transform would have to see an operation on these
// tensors.
bool observed(std::initializer_list<py::handle> tensors) {
    for (const py::handle tensor : tensors)
        if (!tensor.is_none() && !py::type::handle_of(tensor).is(torch().tensor_type)) return true;
    for (const py::handle observer : torch().observers)
        if (truth(observer)) return true;
    if (!truth(torch().grad_enabled)) return false;
    for (const py::handle tensor : tensors)
        if (!tensor.is_none() && py::object(tensor.attr("requires_grad")).ptr() == Py_True) return true;
    return false;
}

bool supported(const TensorView& t) {
#if defined(SPLATDISTILL_CUDA)
    return t.floating;
#else
    return t.floating && !t.cuda;
#endif
}

// Reads and checks the arguments of one call against its x_t [B, ...].
class Arguments {
  public:
    explicit Arguments(py::handle x_t) : tensor_(x_t), x_t_(view(x_t)), contiguous_(x_t_.contiguous) {}

    bool supported() const { return ddim::supported(x_t_); }

    void check() const {
        if (x_t_.ndim < 2 || !supported())
            refuse("x_t", "[B, C, h, w] in float32, float16 or bfloat16 on cpu or (built with CUDA) cuda",
                   x_t_);
        if (x_t_.cuda && x_t_.shape[0] > 65535) refuse("x_t", "at most 65535 samples", x_t_);
    }

    void* x_t() const { return x_t_.data; }

    void* like_x_t(py::handle tensor, const char* name) {
        const TensorView t = view(tensor);
        if (!t.same_shape(x_t_) || !fits(t, x_t_.dtype))
            refuse(name, ("like x_t, " + describe(x_t_)).c_str(), t);
        contiguous_ = contiguous_ && t.contiguous;
        return t.data;
    }

    // [rows, columns], or [rows] for VECTOR columns.
    float* parameters(py::handle tensor, int64_t rows, int64_t columns, const char* name) {
        const TensorView t = view(tensor);
        const bool vector = columns == VECTOR;
        const bool shaped =
            t.ndim == (vector ? 1 : 2) && t.shape[0] == rows && (vector || t.shape[1] == columns);
        if (!shaped || !fits(t, DType::f32)) {
            const std::string shape = std::to_string(rows) + (vector ? "" : ", " + std::to_string(columns));
            refuse(name, ("[" + shape + "] float32 on the device of x_t").c_str(), t);
        }
        contiguous_ = contiguous_ && t.contiguous;
        return static_cast<float*>(t.data);
    }

    Batch batch(py::handle coefficients, int columns) {
        const int64_t samples = x_t_.shape[0];
        const float* values = parameters(coefficients, samples, columns, "coefficients");
        return {x_t_.dtype, samples, samples ? x_t_.numel() / samples : 0, values};
    }

    Guidance guidance(py::handle outputs, py::handle weights, bool perp_neg) {
        const TensorView t = view(outputs);
        bool shaped =
            t.ndim == x_t_.ndim + 1 && t.shape[0] >= (perp_neg ? 2 : 1) && t.shape[0] <= MAX_BRANCHES;
        for (int i = 0; shaped && i < x_t_.ndim; ++i) shaped = t.shape[i + 1] == x_t_.shape[i];
        if (!shaped || !fits(t, x_t_.dtype)) {
            const std::string expected =
                "[R, ...x_t] with R from 1 (perp-neg: 2) to 16, x_t being " + describe(x_t_);
            refuse("outputs", expected.c_str(), t);
        }
        contiguous_ = contiguous_ && t.contiguous;
        const float* values = parameters(weights, t.shape[0], x_t_.shape[0], "weights");
        return {t.data, values, int(t.shape[0]), perp_neg};
    }

    bool contiguous() const { return contiguous_; }

    py::object new_like_x_t() const { return call(torch().empty_like, tensor_); }
    py::object new_norms() const { return call(torch().empty_norms, tensor_); }

    template <class Op>
    void run(const Op& op) const {
        const int64_t elements = op.batch.samples * op.batch.size;
        if (elements == 0) return;
        if (!x_t_.cuda && elements < BRIEF_ELEMENTS) return run_cpu(op, 1);
        const char* error = nullptr;
        if (x_t_.cuda) {
#if defined(SPLATDISTILL_CUDA)
            const auto stream = call(torch().stream, py::int_(x_t_.device)).cast<uintptr_t>();
            const py::gil_scoped_release release;
            error = run_cuda(op, x_t_.device, reinterpret_cast<void*>(stream));
#endif
        } else {
            const int threads = py::object(torch().threads()).cast<int>();
            const py::gil_scoped_release release;
            run_cpu(op, threads);
        }
        if (error) throw std::runtime_error(std::string("splatdistill CUDA kernel: ") + error);
    }

  private:
    bool fits(const TensorView& t, DType dtype) const {
        return t.floating && t.dtype == dtype && t.cuda == x_t_.cuda && (!t.cuda || t.device == x_t_.device);
    }

    py::handle tensor_;
    TensorView x_t_;
    bool contiguous_;
};

using Handles = py::handle const*;

// (x_t, outputs, weights, coefficients, noise or None, perp_neg, direct) -> x_next
py::object ddim_step(Handles in) {
    const bool perp_neg = in[5].is(py::handle(Py_True)), direct = in[6].is(py::handle(Py_True));
    if (direct && observed({in[0], in[1], in[4]})) return py::none();
    Arguments arguments(in[0]);
    if (direct && !arguments.supported()) return py::none();
    arguments.check();
    Step op{arguments.batch(in[3], 7), arguments.guidance(in[1], in[2], perp_neg), arguments.x_t(),
            in[4].is_none() ? nullptr : arguments.like_x_t(in[4], "noise"), nullptr};
    if (!arguments.contiguous()) return py::none();
    py::object x_next = arguments.new_like_x_t();
    op.x_next = arguments.like_x_t(x_next, "x_next");
    arguments.run(op);
    return x_next;
}

// (x_t, outputs, weights, coefficients, noise, perp_neg, direct) -> (gradient, x0_hat, norms)
py::object noise_residual(Handles in) {
    const bool perp_neg = in[5].is(py::handle(Py_True)), direct = in[6].is(py::handle(Py_True));
    if (direct && observed({in[0], in[1], in[4]})) return py::none();
    Arguments arguments(in[0]);
    if (direct && !arguments.supported()) return py::none();
    arguments.check();
    Residual op{arguments.batch(in[3], 5),
                arguments.guidance(in[1], in[2], perp_neg),
                arguments.x_t(),
                arguments.like_x_t(in[4], "noise"),
                nullptr,
                nullptr,
                nullptr};
    if (!arguments.contiguous()) return py::none();
    const py::object gradient = arguments.new_like_x_t(), x0_hat = arguments.new_like_x_t();
    const py::object norms = arguments.new_norms();
    op.gradient = arguments.like_x_t(gradient, "gradient");
    op.x0_hat = arguments.like_x_t(x0_hat, "x0_hat");
    op.norms = arguments.parameters(norms, op.batch.samples, VECTOR, "norms");
    arguments.run(op);
    return py::make_tuple(gradient, x0_hat, norms);
}

// (x_0, x_t, coefficients, direct) -> (eps, x_next)
py::object recover_noise(Handles in) {
    const bool direct = in[3].is(py::handle(Py_True));
    if (direct && observed({in[0], in[1]})) return py::none();
    Arguments arguments(in[1]);
    if (direct && !arguments.supported()) return py::none();
    arguments.check();
    Recover op{arguments.batch(in[2], 4), arguments.like_x_t(in[0], "x_0"), arguments.x_t(), nullptr,
               nullptr};
    if (!arguments.contiguous()) return py::none();
    const py::object eps = arguments.new_like_x_t(), x_next = arguments.new_like_x_t();
    op.eps = arguments.like_x_t(eps, "eps");
    op.x_next = arguments.like_x_t(x_next, "x_next");
    arguments.run(op);
    return py::make_tuple(eps, x_next);
}

// pybind11's own dispatch would cost as much as a whole small step, so Python calls these without it.
template <py::object (*function)(Handles), Py_ssize_t expected>
PyObject* fast_call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    try {
        if (count != expected) throw py::type_error("expected " + std::to_string(expected) + " arguments");
        py::handle handles[expected];
        for (Py_ssize_t i = 0; i < expected; ++i) handles[i] = arguments[i];
        return function(handles).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

template <py::object (*function)(Handles), Py_ssize_t expected>
PyMethodDef method(const char* name) {
    auto* pointer = reinterpret_cast<void*>(&fast_call<function, expected>);
    return {name, reinterpret_cast<PyCFunction>(pointer), METH_FASTCALL, nullptr};
}

void set_torch(py::object tensor_type, py::object empty_like, py::object empty_norms, py::object threads,
               py::object stream, py::object grad_enabled, py::tuple observers) {
    Torch& hooks = torch();
    hooks.tensor_type = tensor_type.release();
    hooks.empty_like = empty_like.release();
    hooks.empty_norms = empty_norms.release();
    hooks.threads = threads.release();
    hooks.stream = stream.release();
    hooks.grad_enabled = grad_enabled.release();
    hooks.observers = std::move(observers);
}

}  // namespace
}  // namespace ddim

void bind_ddim(py::module_& m) {
    using namespace ddim;
    m.def("set_torch", &set_torch, "Hand over what the extension asks of torch; see Torch in tensor_view.h.");
    m.def("set_exchange", &set_exchange,
          "Read tensors through this DLPack exchange capsule (None: by attributes).");
    static PyMethodDef methods[] = {method<&ddim_step, 7>("ddim_step"),
                                    method<&noise_residual, 7>("noise_residual"),
                                    method<&recover_noise, 4>("recover_noise"),
                                    {}};
    if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}
