// Python face of the diffusion steps: argument checks, GIL release, choice of CPU or CUDA.
//
// Every function writes into tensors that the caller allocated. It returns False, having done nothing, when
// an input is not contiguous (the caller copies and calls again) and raises ValueError for what cannot be
// right.
#include <pybind11/pybind11.h>

#include "ddim/ddim.h"
#include "ddim/ddim_math.h"
#include "ddim/tensor_view.h"

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

// Reads and checks the arguments of one call against its x_t [B, ...].
class Arguments {
  public:
    explicit Arguments(py::handle x_t) : x_t_(view(x_t)) {
        if (x_t_.ndim < 2 || !x_t_.floating)
            refuse("x_t", "[B, C, h, w] in float32, float16 or bfloat16 on cpu or cuda", x_t_);
        if (x_t_.cuda && x_t_.shape[0] > 65535) refuse("x_t", "at most 65535 samples", x_t_);
        contiguous_ = x_t_.contiguous;
    }

    const TensorView& x_t() const { return x_t_; }
    bool contiguous() const { return contiguous_; }

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
        if (!shaped || !fits(t, x_t_.dtype))
            refuse("outputs",
                   ("[R, ...x_t] with R from 1 (perp-neg: 2) to 16, x_t being " + describe(x_t_)).c_str(), t);
        contiguous_ = contiguous_ && t.contiguous;
        const float* values = parameters(weights, t.shape[0], x_t_.shape[0], "weights");
        return {t.data, values, int(t.shape[0]), perp_neg};
    }

    template <class Op>
    bool run(const Op& op, int threads, uintptr_t stream) const {
        if (!contiguous_) return false;
        if (op.batch.samples == 0 || op.batch.size == 0) return true;
        const char* error = nullptr;
        {
            const py::gil_scoped_release release;
            if (!x_t_.cuda) {
                run_cpu(op, threads);
            } else {
#if defined(SPLATDISTILL_CUDA)
                error = run_cuda(op, x_t_.device, reinterpret_cast<void*>(stream));
#else
                error = "built without CUDA";
#endif
            }
        }
        if (error) throw std::runtime_error(std::string("splatdistill CUDA kernel: ") + error);
        return true;
    }

  private:
    bool fits(const TensorView& t, DType dtype) const {
        return t.floating && t.dtype == dtype && t.cuda == x_t_.cuda && (!t.cuda || t.device == x_t_.device);
    }

    TensorView x_t_;
    bool contiguous_ = false;
};

// Positional arguments of a call, read left to right. pybind11's own dispatch would cost as much as a whole
// small step.
class Reader {
  public:
    Reader(PyObject* const* arguments, Py_ssize_t count) : next_(arguments), end_(arguments + count) {}

    py::handle tensor() {
        if (next_ == end_) throw py::type_error("too few arguments");
        return *next_++;
    }
    uintptr_t integer() {
        const size_t value = PyLong_AsSize_t(tensor().ptr());
        if (PyErr_Occurred()) throw py::error_already_set();
        return value;
    }
    bool flag() { return tensor().ptr() == Py_True; }

  private:
    PyObject* const* next_;
    PyObject* const* end_;
};

// (x_next, x_t, outputs, weights, coefficients, noise or None, perp_neg, threads, stream)
bool ddim_step(Reader in) {
    const py::handle x_next = in.tensor(), x_t = in.tensor(), outputs = in.tensor(), weights = in.tensor();
    const py::handle coefficients = in.tensor(), noise = in.tensor();
    const bool perp_neg = in.flag();
    const int threads = int(in.integer());
    Arguments arguments(x_t);
    Step op{arguments.batch(coefficients, 7), arguments.guidance(outputs, weights, perp_neg),
            arguments.x_t().data, noise.is_none() ? nullptr : arguments.like_x_t(noise, "noise"),
            arguments.like_x_t(x_next, "x_next")};
    return arguments.run(op, threads, in.integer());
}

// (gradient, x0_hat, norms, x_t, outputs, weights, coefficients, noise, perp_neg, threads, stream)
bool noise_residual(Reader in) {
    const py::handle gradient = in.tensor(), x0_hat = in.tensor(), norms = in.tensor(), x_t = in.tensor();
    const py::handle outputs = in.tensor(), weights = in.tensor(), coefficients = in.tensor(),
                     noise = in.tensor();
    const bool perp_neg = in.flag();
    const int threads = int(in.integer());
    Arguments arguments(x_t);
    Residual op{arguments.batch(coefficients, 5),
                arguments.guidance(outputs, weights, perp_neg),
                arguments.x_t().data,
                arguments.like_x_t(noise, "noise"),
                arguments.like_x_t(gradient, "gradient"),
                arguments.like_x_t(x0_hat, "x0_hat"),
                arguments.parameters(norms, arguments.x_t().shape[0], VECTOR, "norms")};
    return arguments.run(op, threads, in.integer());
}

// (eps, x_next, x_0, x_t, coefficients, threads, stream)
bool recover_noise(Reader in) {
    const py::handle eps = in.tensor(), x_next = in.tensor(), x_0 = in.tensor(), x_t = in.tensor();
    const py::handle coefficients = in.tensor();
    const int threads = int(in.integer());
    Arguments arguments(x_t);
    Recover op{arguments.batch(coefficients, 4), arguments.like_x_t(x_0, "x_0"), arguments.x_t().data,
               arguments.like_x_t(eps, "eps"), arguments.like_x_t(x_next, "x_next")};
    return arguments.run(op, threads, in.integer());
}

template <bool (*function)(Reader)>
PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    try {
        return PyBool_FromLong(function(Reader(arguments, count)));
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

template <bool (*function)(Reader)>
PyMethodDef method(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call<function>)), METH_FASTCALL,
            nullptr};
}

}  // namespace
}  // namespace ddim

void bind_ddim(py::module_& m) {
    using namespace ddim;
    m.def("set_exchange", &set_exchange,
          "Read tensors through this DLPack exchange capsule (None: by attributes).");
    static PyMethodDef methods[] = {method<&ddim_step>("ddim_step"),
                                    method<&noise_residual>("noise_residual"),
                                    method<&recover_noise>("recover_noise"),
                                    {}};
    if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}
