// Reads a torch tensor without knowing torch: through DLPack's C exchange table where torch offers one
// (tens of nanoseconds a tensor), through Python attributes elsewhere.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "ddim/ddim.h"

namespace ddim {

// The part of DLPack 1.x that is read here; layout fixed by its stable ABI.
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
    int (*read)(void* tensor, DLTensor* out);
    void* stream;
};

struct TensorView {
    static constexpr int MAX_NDIM = 8;
    void* data = nullptr;
    int ndim = 0;
    int64_t shape[MAX_NDIM] = {};
    bool contiguous = false, floating = false, cuda = false;
    int device = 0;
    DType dtype = DType::f32;

    int64_t numel() const {
        int64_t count = 1;
        for (int i = 0; i < ndim; ++i) count *= shape[i];
        return count;
    }
    bool same_shape(const TensorView& other) const {
        bool same = ndim == other.ndim;
        for (int i = 0; same && i < ndim; ++i) same = shape[i] == other.shape[i];
        return same;
    }
};

// What the extension asks of torch at run time, handed over once by splatdistill.ops.native.
struct Torch {
    const DLPackExchange* exchange = nullptr;  // null before torch 2.10: tensors are read by attributes
    pybind11::handle tensor_type;              // torch.Tensor
    pybind11::handle empty_like;               // torch.empty_like
    pybind11::handle empty_norms;              // x_t [B, ...] -> a new [B] float32 on its device
    pybind11::handle threads;                  // torch.get_num_threads
    pybind11::handle stream;                   // device index -> handle of the current CUDA stream
    pybind11::handle grad_enabled;             // torch.is_grad_enabled
    pybind11::tuple observers;  // functions that are true while a mode or a transform is active
};

inline Torch& torch() {
    static Torch* const hooks = new Torch;  // never destroyed: it holds references to Python objects
    return *hooks;
}

inline void set_exchange(pybind11::object capsule) {
    torch().exchange = nullptr;
    if (capsule.is_none()) return;
    auto* table = static_cast<DLPackExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw pybind11::error_already_set();
    if (table->major == 1 && table->read) torch().exchange = table;
}

inline TensorView view_by_dlpack(pybind11::handle tensor) {
    DLTensor t;
    if (torch().exchange->read(tensor.ptr(), &t)) throw pybind11::error_already_set();
    TensorView view;
    view.data = static_cast<char*>(t.data) + t.byte_offset;
    view.ndim = t.ndim <= TensorView::MAX_NDIM ? t.ndim : 0;
    view.contiguous = true;
    int64_t stride = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.shape[i] = t.shape[i];
        view.contiguous = view.contiguous && (t.shape[i] == 1 || t.strides[i] == stride);
        stride *= t.shape[i];
    }
    view.contiguous = view.contiguous || stride == 0;
    constexpr int FLOAT = 2, BFLOAT = 4;
    view.floating = t.lanes == 1 && ((t.code == FLOAT && (t.bits == 32 || t.bits == 16)) ||
                                     (t.code == BFLOAT && t.bits == 16));
    view.dtype = t.bits == 32 ? DType::f32 : t.code == FLOAT ? DType::f16 : DType::bf16;
    constexpr int CPU = 1, CUDA = 2;
    view.cuda = t.device_type == CUDA;
    view.device = t.device_id;
    view.floating = view.floating && (view.cuda || t.device_type == CPU);
    return view;
}

inline TensorView view_by_attributes(pybind11::handle tensor) {
    namespace py = pybind11;
    TensorView view;
    const py::tuple shape = py::tuple(tensor.attr("shape"));
    view.ndim = shape.size() <= TensorView::MAX_NDIM ? int(shape.size()) : 0;
    for (int i = 0; i < view.ndim; ++i) view.shape[i] = shape[i].cast<int64_t>();
    view.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
    view.contiguous = tensor.attr("is_contiguous")().cast<bool>();
    const std::string dtype = py::str(tensor.attr("dtype")),
                      device = py::str(tensor.attr("device").attr("type"));
    view.dtype = dtype == "torch.float32" ? DType::f32 : dtype == "torch.float16" ? DType::f16 : DType::bf16;
    view.cuda = device == "cuda";
    view.floating =
        (view.dtype != DType::bf16 || dtype == "torch.bfloat16") && (view.cuda || device == "cpu");
    if (view.cuda) view.device = tensor.attr("device").attr("index").cast<int>();
    return view;
}

inline TensorView view(pybind11::handle tensor) {
    return torch().exchange ? view_by_dlpack(tensor) : view_by_attributes(tensor);
}

}  // namespace ddim
