#include "python/tensor_view.h"

#include <algorithm>

namespace py = pybind11;

namespace splatdistill::python {
namespace {

// The part of DLPack 1.x that is read here; layout fixed by its stable ABI. A capsule of version 0 points to
// a structure that begins with a DLTensor.
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct DLPackExchange {
    uint32_t major, minor;
    void* previous;
    void* unused[3];
    int (*read)(void* tensor, DLTensor* out);  // borrows; asks nothing of autograd or of streams
    void* stream;
};

constexpr int kCpu = 1, kCuda = 2;  // device types

PyObject* exchange_type = nullptr;               // torch.Tensor, or null: its __dlpack__ is called
const DLPackExchange* exchange_table = nullptr;  // both set once, and torch's classes are never freed

TensorView::Element element_of(const DLTensor& t) {
    using Element = TensorView::Element;
    enum { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4 };
    if (t.lanes != 1) return Element::other;
    if (t.code == kFloat && t.bits == 32) return Element::f32;
    if (t.code == kFloat && t.bits == 16) return Element::f16;
    if (t.code == kBfloat && t.bits == 16) return Element::bf16;
    if (t.code == kInt && t.bits == 32) return Element::i32;
    if (t.code == kUnsigned && t.bits == 8) return Element::u8;
    return Element::other;
}

const char* name_of(TensorView::Element element) {
    static const char* const names[] = {"float32", "float16", "bfloat16", "int32", "uint8", "another dtype"};
    return names[int(element)];
}

TensorView read(const DLTensor& t) {
    if (t.ndim > TensorView::kMaxNdim)
        throw py::value_error("an array has at most " + std::to_string(TensorView::kMaxNdim) + " dimensions");
    TensorView view;
    view.data = static_cast<char*>(t.data) + t.byte_offset;
    view.ndim = t.ndim;
    view.contiguous = true;
    int64_t stride = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.shape[i] = t.shape[i];
        view.contiguous = view.contiguous && (!t.strides || t.shape[i] == 1 || t.strides[i] == stride);
        stride *= t.shape[i];
    }
    view.contiguous = view.contiguous || stride == 0;
    view.element = element_of(t);
    view.cuda = t.device_type == kCuda;
    view.device = t.device_id;
    if (!view.cuda && t.device_type != kCpu) view.element = TensorView::Element::other;
    return view;
}

// Without the exchange: the protocol that every array library speaks.
TensorView view_by_protocol(py::handle array) {
    py::object source = py::reinterpret_borrow<py::object>(array);
    if (!py::hasattr(source, "__dlpack__"))
        throw py::type_error("expected a tensor or an array, got " +
                             std::string(py::str(py::type::handle_of(array))));
    if (py::hasattr(source, "detach")) source = source.attr("detach")();  // __dlpack__ refuses gradients
    const bool cuda = py::tuple(source.attr("__dlpack_device__")())[0].cast<int>() == kCuda;
    constexpr int kNoWait = -1;  // the kernels run on torch's current stream
    const py::object capsule =
        cuda ? source.attr("__dlpack__")(py::arg("stream") = kNoWait) : source.attr("__dlpack__")();
    const auto* tensor = static_cast<const DLTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!tensor) throw py::error_already_set();
    TensorView view = read(*tensor);
    view.owner = capsule;
    return view;
}

std::string bracketed(const int64_t* shape, size_t ndim) {
    std::string text = "[";
    for (size_t i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

}  // namespace

int64_t TensorView::numel() const {
    int64_t count = 1;
    for (int i = 0; i < ndim; ++i) count *= shape[i];
    return count;
}

bool TensorView::has_shape(std::initializer_list<int64_t> expected) const {
    return size_t(ndim) == expected.size() && std::equal(expected.begin(), expected.end(), shape);
}

bool TensorView::same_shape(const TensorView& other) const {
    return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
}

std::string TensorView::describe() const {
    return bracketed(shape, size_t(ndim)) + " " + name_of(element) + (contiguous ? "" : ", not contiguous,") +
           (cuda ? " on cuda:" + std::to_string(device) : " on cpu");
}

void* TensorView::contiguous_data(Element expected, std::initializer_list<int64_t> sizes,
                                  const char* name) const {
    if (!has_shape(sizes) || element != expected || !contiguous || cuda)
        throw py::value_error(std::string(name) + " must be a contiguous CPU array of shape " +
                              bracketed(sizes.begin(), sizes.size()) + " and " + name_of(expected) +
                              ", got " + describe());
    return data;
}

float* TensorView::floats(std::initializer_list<int64_t> sizes, const char* name) const {
    return static_cast<float*>(contiguous_data(Element::f32, sizes, name));
}

int32_t* TensorView::integers(std::initializer_list<int64_t> sizes, const char* name) const {
    return static_cast<int32_t*>(contiguous_data(Element::i32, sizes, name));
}

uint8_t* TensorView::bytes(std::initializer_list<int64_t> sizes, const char* name) const {
    return static_cast<uint8_t*>(contiguous_data(Element::u8, sizes, name));
}

TensorView view_of(py::handle tensor) {
    if (exchange_table && reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr())) == exchange_type) {
        DLTensor t;
        if (exchange_table->read(tensor.ptr(), &t)) throw py::error_already_set();
        return read(t);
    }
    return view_by_protocol(tensor);
}

void set_exchange(py::handle tensor_type, py::object capsule) {
    exchange_table = nullptr;
    if (capsule.is_none()) return;
    const auto* table =
        static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw py::error_already_set();
    if (table->major != 1 || !table->read) return;
    exchange_type = tensor_type.ptr();
    exchange_table = table;
}

}  // namespace splatdistill::python
