// The CPU rasterizer: float32 arrays in, results into the caller's arrays. RasterScene and RasterPicture
// borrow what they are made of.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <utility>

#include "dispatch.h"
#include "python/tensor_view.h"
#include "raster/raster.h"

namespace py = pybind11;

namespace splatdistill::python {
namespace {

using namespace raster;
using Optional = std::optional<TensorView>;

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
    Allocator allocator() {
        return {[](void* self, size_t size) {
                    Memory& memory = *static_cast<Memory*>(self);
                    memory.block = pool().take(size);
                    memory.size = size;
                    return memory.block.data;
                },
                this};
    }
};

float* optional_floats(const Optional& tensor, std::initializer_list<int64_t> shape, const char* name) {
    return tensor ? tensor->floats(shape, name) : nullptr;
}

void check_size(int width, int height) {
    if (width < 1 || height < 1)
        throw py::value_error("an image has at least one pixel, got " + std::to_string(width) + " x " +
                              std::to_string(height));
}

Scene scene_of(const TensorView& means, const TensorView& quats, const TensorView& scales,
               const TensorView& opacities, const TensorView& sh, const TensorView& viewmats,
               const TensorView& Ks, int width, int height, int sh_degree, float near, float far,
               float radius_clip, float eps2d) {
    const int64_t N = means.shape[0], K = sh.shape[1], V = viewmats.shape[0];
    check_size(width, height);
    if (sh_degree < 0 || sh_degree > 3 || (sh_degree + 1) * (sh_degree + 1) > K)
        throw py::value_error("sh_degree must be 0..3, with its coefficients in sh; got " +
                              std::to_string(sh_degree) + " with K=" + std::to_string(K));
    return {means.floats({N, 3}, "means"),
            quats.floats({N, 4}, "quats"),
            scales.floats({N, 3}, "scales"),
            opacities.floats({N}, "opacities"),
            sh.floats({N, K, 3}, "sh"),
            viewmats.floats({V, 4, 4}, "viewmats"),
            Ks.floats({V, 3, 3}, "Ks"),
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

// The image and the projected Gaussians that are drawn on it.
struct Picture {
    Image image;
    RasterInputs in;
};

Picture picture_of(const TensorView& means2d, const TensorView& conics, const TensorView& colors,
                   const TensorView& opacities, const TensorView& depths, const TensorView& radii,
                   const Optional& backgrounds, int width, int height) {
    const int64_t V = depths.shape[0], N = depths.shape[1];
    check_size(width, height);
    return {{N, V, width, height},
            {means2d.floats({V, N, 2}, "means2d"), conics.floats({V, N, 3}, "conics"),
             colors.floats({V, N, 3}, "colors"), opacities.floats({N}, "opacities"),
             depths.floats({V, N}, "depths"), radii.integers({V, N, 2}, "radii"),
             optional_floats(backgrounds, {V, 3}, "backgrounds")}};
}

void raster_project(const Scene& scene, const TensorView& means2d, const TensorView& conics,
                    const TensorView& depths, const TensorView& colors, const TensorView& radii) {
    const int64_t V = scene.V, N = scene.N;
    const Projection out{means2d.floats({V, N, 2}, "means2d"), conics.floats({V, N, 3}, "conics"),
                         depths.floats({V, N}, "depths"), colors.floats({V, N, 3}, "colors"),
                         radii.integers({V, N, 2}, "radii")};
    const py::gil_scoped_release release;
    kernels().project(scene, out);
}

void raster_project_backward(const Scene& scene, const TensorView& radii, const TensorView& means2d,
                             const TensorView& conics, const TensorView& depths, const TensorView& colors,
                             const TensorView& v_means, const TensorView& v_quats, const TensorView& v_scales,
                             const TensorView& v_sh) {
    const int64_t V = scene.V, N = scene.N;
    const int32_t* seen = radii.integers({V, N, 2}, "radii");
    const ProjectionGradient gradient{
        means2d.floats({V, N, 2}, "v_means2d"), conics.floats({V, N, 3}, "v_conics"),
        depths.floats({V, N}, "v_depths"),      colors.floats({V, N, 3}, "v_colors"),
        v_means.floats({N, 3}, "v_means"),      v_quats.floats({N, 4}, "v_quats"),
        v_scales.floats({N, 3}, "v_scales"),    v_sh.floats({N, scene.K, 3}, "v_sh")};
    const py::gil_scoped_release release;
    kernels().project_backward(scene, seen, gradient);
}

// Returns what the backward pass needs.
std::unique_ptr<Memory> raster_draw(const Picture& picture, const TensorView& rgb, const TensorView& alpha,
                                    const TensorView& depth) {
    const Image& image = picture.image;
    const int64_t V = image.V, H = image.height, W = image.width;
    const RasterOutputs out{rgb.floats({V, H, W, 3}, "rgb"), alpha.floats({V, H, W, 1}, "alpha"),
                            depth.floats({V, H, W, 1}, "depth")};
    auto memory = std::make_unique<Memory>();
    const py::gil_scoped_release release;
    const State state = kernels().bin(image, picture.in, memory->allocator());
    kernels().rasterize(image, state, picture.in.backgrounds, out);
    return memory;
}

// Gradients of rgb, alpha and depth are None where the loss leaves the image out.
void raster_draw_backward(const Picture& picture, const TensorView& state, const Optional& rgb,
                          const Optional& alpha, const Optional& depth, const TensorView& alpha_out,
                          const TensorView& depth_out, const TensorView& v_means2d,
                          const TensorView& v_conics, const TensorView& v_colors,
                          const TensorView& v_opacities, const TensorView& v_depths,
                          const TensorView& v_backgrounds) {
    const Image& image = picture.image;
    const int64_t N = image.N, V = image.V, H = image.height, W = image.width;
    auto* memory = reinterpret_cast<char*>(state.bytes({state.numel()}, "state"));
    const RasterGradient gradient{
        optional_floats(rgb, {V, H, W, 3}, "v_rgb"),     optional_floats(alpha, {V, H, W, 1}, "v_alpha"),
        optional_floats(depth, {V, H, W, 1}, "v_depth"), alpha_out.floats({V, H, W, 1}, "alpha"),
        depth_out.floats({V, H, W, 1}, "depth"),         v_means2d.floats({V, N, 2}, "v_means2d"),
        v_conics.floats({V, N, 3}, "v_conics"),          v_colors.floats({V, N, 3}, "v_colors"),
        v_opacities.floats({N}, "v_opacities"),          v_depths.floats({V, N}, "v_depths"),
        v_backgrounds.floats({V, 3}, "v_backgrounds")};
    const py::gil_scoped_release release;
    const State read = kernels().read_state(image, memory, size_t(state.numel()));
    kernels().rasterize_backward(image, read, picture.in, gradient);
}

}  // namespace

void bind_raster(py::module_& m) {
    py::class_<Scene>(m, "RasterScene").def(py::init(&scene_of));
    py::class_<Picture>(m, "RasterPicture").def(py::init(&picture_of));
    py::class_<Memory>(m, "RasterMemory", py::buffer_protocol()).def_buffer([](Memory& memory) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(memory.block.data), py::ssize_t(memory.size));
    });
    m.def("raster_project", &raster_project);
    m.def("raster_project_backward", &raster_project_backward);
    m.def("raster_draw", &raster_draw);
    m.def("raster_draw_backward", &raster_draw_backward);
}

}  // namespace splatdistill::python
