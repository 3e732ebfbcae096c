// Reads torch tensors and numpy arrays without knowing either: through DLPack. Every binding takes its arrays
// as TensorView, by the caster below.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace splatdistill::python {

// Classes that hold Python objects are no more visible than pybind11's own.
class __attribute__((visibility("hidden"))) TensorView {
  public:
    static constexpr int kMaxNdim = 8;

    enum class Element { f32, f16, bf16, i32, u8, other };

    void* data = nullptr;
    int ndim = 0;
    int64_t shape[kMaxNdim] = {};
    bool contiguous = false, cuda = false;
    int device = 0;
    Element element = Element::other;

    int64_t numel() const;
    bool has_shape(std::initializer_list<int64_t> expected) const;
    bool same_shape(const TensorView& other) const;
    std::string describe() const;

    // The data of a contiguous CPU array of this shape; ValueError that names the argument elsewhere.
    float* floats(std::initializer_list<int64_t> expected, const char* name) const;
    int32_t* integers(std::initializer_list<int64_t> expected, const char* name) const;
    uint8_t* bytes(std::initializer_list<int64_t> expected, const char* name) const;

    pybind11::object owner;  // what keeps `data` alive, where the caller's reference does not

  private:
    void* contiguous_data(Element, std::initializer_list<int64_t> expected, const char* name) const;
};

TensorView view_of(pybind11::handle tensor);

// Read torch's tensors through this DLPack exchange capsule in tens of nanoseconds; None: by __dlpack__.
void set_exchange(pybind11::handle tensor_type, pybind11::object capsule);

}  // namespace splatdistill::python

namespace pybind11::detail {

template <>
struct type_caster<splatdistill::python::TensorView> {
    PYBIND11_TYPE_CASTER(splatdistill::python::TensorView, const_name("Array"));
    bool load(handle source, bool) {
        if (source.is_none()) return false;
        value = splatdistill::python::view_of(source);
        return true;
    }
};

}  // namespace pybind11::detail
