// Python's face of the CPU rasterizer: addresses of contiguous float32 arrays and sizes; the GIL is released.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "raster/raster.h"

namespace py = pybind11;
using namespace splatdistill::raster;

namespace {

using Address = uintptr_t;  // zero: an argument left out

float* floats(Address address) { return reinterpret_cast<float*>(address); }
int32_t* integers(Address address) { return reinterpret_cast<int32_t*>(address); }

// A few freed blocks, kept because fresh pages cost more than the drawing of a small image.
class Pool {
  public:
    struct Block {
        char* data = nullptr;
        size_t capacity = 0;
    };

    Block take(size_t size) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (Block& kept : kept_)
                if (kept.capacity >= size && kept.capacity / 4 <= size) return std::exchange(kept, Block());
        }
        size_t capacity = (size + size / 4 + 63) / 64 * 64;
        char* data = static_cast<char*>(std::aligned_alloc(64, capacity));
        if (!data) throw std::bad_alloc();
        return {data, capacity};
    }

    void give(Block block) {
        std::lock_guard<std::mutex> lock(mutex_);
        std::swap(block, kept_[next_++ % kKept]);
        std::free(block.data);
    }

  private:
    static constexpr size_t kKept = 4;
    std::mutex mutex_;
    Block kept_[kKept];
    size_t next_ = 0;
};

Pool& pool() {
    static Pool* one = new Pool;  // never destroyed: Python may free tensors after static destructors ran
    return *one;
}

// 64-byte aligned bytes with Python's buffer protocol.
struct Memory {
    Pool::Block block;
    size_t size = 0;
    Memory() = default;
    Memory(const Memory&) = delete;
    ~Memory() {
        if (block.data) pool().give(block);
    }
    static char* allocate(void* self, size_t size) {
        Memory& memory = *static_cast<Memory*>(self);
        memory.block = pool().take(size);
        memory.size = size;
        return memory.block.data;
    }
};

Scene scene_of(Address means, Address quats, Address scales, Address opacities, Address sh, Address viewmats,
               Address Ks, int64_t N, int64_t K, int64_t V, int width, int height, int sh_degree, float near,
               float far, float radius_clip, float eps2d) {
    return {floats(means),
            floats(quats),
            floats(scales),
            floats(opacities),
            floats(sh),
            floats(viewmats),
            floats(Ks),
            N,
            K,
            V,
            width,
            height,
            sh_degree,
            near,
            far,
            radius_clip,
            eps2d};
}

State state_of(const Image& image, Address memory, size_t size) {
    State state;
    lay_out(image, 0, 0, reinterpret_cast<char*>(memory), state);
    int64_t splats = state.splat_begin[image.V], entries = state.entry_begin[image.V * image.tiles()];
    if (lay_out(image, splats, entries, reinterpret_cast<char*>(memory), state) != size)
        throw std::invalid_argument("the rasterizer's state does not belong to these inputs");
    return state;
}

}  // namespace

void bind_raster(py::module_& m) {
    py::class_<Scene>(m, "RasterScene").def(py::init(&scene_of));
    py::class_<Image>(m, "RasterImage").def(py::init([](int64_t N, int64_t V, int width, int height) {
        return Image{N, V, width, height};
    }));
    py::class_<RasterInputs>(m, "RasterInputs")
        .def(py::init([](Address means2d, Address conics, Address colours, Address opacities, Address depths,
                         Address radii, Address backgrounds) {
            return RasterInputs{floats(means2d), floats(conics),  floats(colours),    floats(opacities),
                                floats(depths),  integers(radii), floats(backgrounds)};
        }));
    py::class_<Memory>(m, "RasterMemory", py::buffer_protocol()).def_buffer([](Memory& memory) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(memory.block.data), py::ssize_t(memory.size));
    });

    m.def("raster_project", [](const Scene& scene, Address means2d, Address conics, Address depths,
                               Address colours, Address radii) {
        py::gil_scoped_release release;
        project(scene, {floats(means2d), floats(conics), floats(depths), floats(colours), integers(radii)});
    });
    m.def("raster_project_backward",
          [](const Scene& scene, Address radii, Address means2d, Address conics, Address depths,
             Address colours, Address v_means, Address v_quats, Address v_scales, Address v_sh) {
              py::gil_scoped_release release;
              project_backward(scene, integers(radii),
                               {floats(means2d), floats(conics), floats(depths), floats(colours),
                                floats(v_means), floats(v_quats), floats(v_scales), floats(v_sh)});
          });
    m.def("raster_draw",
          [](const Image& image, const RasterInputs& in, Address rgb, Address alpha, Address depth) {
              auto memory = std::make_unique<Memory>();
              py::gil_scoped_release release;
              State state = bin(image, in, &Memory::allocate, memory.get());
              rasterize(image, state, in.backgrounds, {floats(rgb), floats(alpha), floats(depth)});
              return memory;
          });
    m.def("raster_draw_backward",
          [](const Image& image, const RasterInputs& in, Address state, size_t state_size, Address rgb,
             Address alpha, Address depth, Address alpha_out, Address depth_out, Address v_means2d,
             Address v_conics, Address v_colours, Address v_opacities, Address v_depths,
             Address v_backgrounds) {
              py::gil_scoped_release release;
              rasterize_backward(image, state_of(image, state, state_size), in,
                                 {floats(rgb), floats(alpha), floats(depth), floats(alpha_out),
                                  floats(depth_out), floats(v_means2d), floats(v_conics), floats(v_colours),
                                  floats(v_opacities), floats(v_depths), floats(v_backgrounds)});
          });
}
