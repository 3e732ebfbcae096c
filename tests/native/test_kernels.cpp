// Whole kernels, each level that runs here: the lists of binning, and memory that sanitizers watch. Arrays
// are exactly as long as the kernels may read and write. What images should look like is tested from Python.
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "dispatch.h"

namespace splatdistill {

namespace raster {
namespace baseline {
void test_primitives();
}
namespace avx2 {
void test_primitives();
}
namespace avx512 {
void test_primitives();
}
}  // namespace raster

namespace {

std::mt19937 random_bits(3);

float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_bits); }

std::vector<float> uniforms(int64_t count, float low, float high) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = uniform(low, high);
    return values;
}

// Drawn once, forward and backward, with arrays of its own.
struct Drawing {
    int64_t N, V, K;
    int width, height, degree;
    std::vector<float> means, quats, scales, opacities, sh, viewmats, Ks, backgrounds;
    std::vector<float> means2d, conics, depths, colors, rgb, alpha, depth;
    std::vector<int32_t> radii;
    std::vector<float> v_means2d, v_conics, v_colors, v_opacities, v_depths, v_backgrounds;
    std::vector<float> v_means, v_quats, v_scales, v_sh, cotangents;
    std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
    size_t memory_size = 0;

    Drawing(int64_t N, int64_t V, int width, int height, int degree)
        : N(N), V(V), K((degree + 1) * (degree + 1)), width(width), height(height), degree(degree) {
        means = uniforms(N * 3, -1.2f, 1.2f), quats = uniforms(N * 4, -1, 1);
        scales = uniforms(N * 3, 0.01f, 0.3f), opacities = uniforms(N, 0.001f, 1);
        sh = uniforms(N * K * 3, -1, 1), backgrounds = uniforms(V * 3, 0, 1);
        for (int64_t v = 0; v < V; ++v) {
            const float distance = 2.5f + float(v), focal = float(width);
            const float matrix[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, distance, 0, 0, 0, 1};
            const float K[9] = {focal, 0, 0.5f * float(width), 0, focal, 0.5f * float(height), 0, 0, 1};
            viewmats.insert(viewmats.end(), matrix, matrix + 16), Ks.insert(Ks.end(), K, K + 9);
        }
        const size_t VN = size_t(V * N), pixels = size_t(V) * size_t(width) * size_t(height);
        means2d.resize(VN * 2), conics.resize(VN * 3), depths.resize(VN), colors.resize(VN * 3);
        radii.resize(VN * 2), rgb.resize(pixels * 3), alpha.resize(pixels), depth.resize(pixels);
        v_means2d.resize(VN * 2), v_conics.resize(VN * 3), v_colors.resize(VN * 3), v_depths.resize(VN);
        v_opacities.resize(size_t(N)), v_backgrounds.resize(size_t(V) * 3), v_means.resize(size_t(N) * 3);
        v_quats.resize(size_t(N) * 4), v_scales.resize(size_t(N) * 3), v_sh.resize(size_t(N * K) * 3);
        cotangents = uniforms(int64_t(pixels) * 3, -1, 1);
    }

    raster::Scene scene() const {
        return {means.data(),
                quats.data(),
                scales.data(),
                opacities.data(),
                sh.data(),
                viewmats.data(),
                Ks.data(),
                N,
                K,
                V,
                width,
                height,
                degree,
                0.01f,
                1e10f,
                0.0f,
                0.3f};
    }
    raster::Image image() const { return {N, V, width, height}; }
    raster::RasterInputs inputs() const {
        return {means2d.data(), conics.data(), colors.data(),     opacities.data(),
                depths.data(),  radii.data(),  backgrounds.data()};
    }
    raster::State state() const { return kernels().read_state(image(), memory.get(), memory_size); }

    void forward() {
        kernels().project(scene(),
                          {means2d.data(), conics.data(), depths.data(), colors.data(), radii.data()});
        const raster::Allocator allocator{
            [](void* self, size_t size) {
                auto* drawing = static_cast<Drawing*>(self);
                drawing->memory.reset(static_cast<char*>(std::aligned_alloc(64, size)));
                drawing->memory_size = size;
                return drawing->memory.get();
            },
            this};
        const raster::State state = kernels().bin(image(), inputs(), allocator);
        kernels().rasterize(image(), state, backgrounds.data(), {rgb.data(), alpha.data(), depth.data()});
    }

    void backward() {
        const size_t pixels = alpha.size();
        kernels().rasterize_backward(
            image(), state(), inputs(),
            {cotangents.data(), cotangents.data() + pixels, cotangents.data() + 2 * pixels, alpha.data(),
             depth.data(), v_means2d.data(), v_conics.data(), v_colors.data(), v_opacities.data(),
             v_depths.data(), v_backgrounds.data()});
        kernels().project_backward(scene(), radii.data(),
                                   {v_means2d.data(), v_conics.data(), v_depths.data(), v_colors.data(),
                                    v_means.data(), v_quats.data(), v_scales.data(), v_sh.data()});
    }
};

// Each tile lists, near to far, at least every Gaussian that can color one of its pixels, and each at most
// once.
void check_lists(const Drawing& d) {
    const raster::Image image = d.image();
    const raster::State state = d.state();
    for (int64_t tile = 0; tile < image.V * image.tiles(); ++tile) {
        const int64_t view = tile / image.tiles(), at = tile % image.tiles();
        const int left = int(at % image.tiles_x()) * raster::kTile,
                  top = int(at / image.tiles_x()) * raster::kTile;
        std::vector<int> listed(size_t(d.N), 0);
        float before = 0.0f;
        for (int64_t i = state.entry_begin[tile]; i < state.entry_begin[tile + 1]; ++i) {
            const raster::Splat& splat = state.splats[state.entries[i]];
            CHECK(splat.depth >= before);
            before = splat.depth;
            CHECK(++listed[size_t(splat.id)] == 1);
        }
        for (int64_t n = 0; n < d.N; ++n) {
            const size_t g = size_t(view * d.N + n);
            if (listed[size_t(n)] || d.radii[2 * g] == 0) continue;
            const float *mean = &d.means2d[2 * g], *conic = &d.conics[3 * g];
            for (int y = top; y < std::min(top + raster::kTile, d.height); ++y)
                for (int x = left; x < std::min(left + raster::kTile, d.width); ++x) {
                    const double dx = mean[0] - (x + 0.5), dy = mean[1] - (y + 0.5);
                    const double sigma = 0.5 * (conic[0] * dx * dx + conic[2] * dy * dy) + conic[1] * dx * dy;
                    CHECK(d.opacities[size_t(n)] * std::exp(-sigma) < raster::kAlphaMin * 1.0001);
                }
        }
    }
}

void test_binning_lists_every_gaussian_that_a_tile_can_see() {
    Drawing d(150, 2, 70, 41, 0);
    d.forward();
    check_lists(d);
}

void test_foreign_state_is_refused() {
    Drawing d(20, 1, 20, 20, 0);
    d.forward();
    bool refused = false;
    try {
        kernels().read_state(d.image(), d.memory.get(), d.memory_size - 64);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
}

void test_odd_sizes_stay_within_their_arrays() {
    for (const int64_t N : {0, 1, 15, 16, 17, 100})
        for (const int degree : {0, 1, 3}) {
            Drawing d(N, 1 + N % 3, int(1 + N), 33, degree);
            if (N > 3) d.means[2] = -100.0f, d.scales[4] = std::nanf(""), d.quats[8] = INFINITY;
            d.forward();
            d.backward();
            check_lists(d);
        }
}

void test_number_of_threads_changes_no_bit() {
    Drawing one(300, 3, 50, 60, 2);
    Drawing many(one.N, one.V, one.width, one.height, one.degree);
    many.means = one.means, many.quats = one.quats, many.scales = one.scales, many.opacities = one.opacities;
    many.sh = one.sh, many.backgrounds = one.backgrounds, many.cotangents = one.cotangents;
    omp_set_num_threads(1);
    one.forward(), one.backward();
    omp_set_num_threads(4);
    many.forward(), many.backward();
    CHECK(one.rgb == many.rgb && one.alpha == many.alpha && one.depth == many.depth);
    CHECK(one.v_means == many.v_means && one.v_quats == many.v_quats && one.v_scales == many.v_scales);
    CHECK(one.v_sh == many.v_sh && one.v_opacities == many.v_opacities);
}

void test_diffusion_steps_stay_within_their_arrays() {
    for (const ddim::DType dtype : {ddim::DType::f32, ddim::DType::f16, ddim::DType::bf16})
        for (const int64_t size : {1, 7, 16, 513})
            for (const int branches : {1, 2, 5, 16}) {
                const int64_t samples = 3, words = dtype == ddim::DType::f32 ? 2 : 1;  // of 16 bits
                using Words = std::vector<uint16_t>;
                const Words outputs(size_t(branches * samples * size * words), 0x3c00);
                const Words x_t(size_t(samples * size * words), 0x3c00), noise = x_t;
                Words a(x_t.size()), b(x_t.size());
                const auto weights = uniforms(branches * samples, -1, 1), c = uniforms(samples * 7, -1, 1);
                std::vector<float> norms(static_cast<size_t>(samples));
                const ddim::Batch batch{dtype, samples, size, c.data()};
                const ddim::Guidance guidance{outputs.data(), weights.data(), branches, branches > 1};
                kernels().step({batch, guidance, x_t.data(), noise.data(), a.data()}, 2);
                kernels().step({batch, guidance, x_t.data(), nullptr, a.data()}, 1);
                kernels().residual(
                    {batch, guidance, x_t.data(), noise.data(), a.data(), b.data(), norms.data()}, 2);
                kernels().recover({batch, x_t.data(), noise.data(), a.data(), b.data()}, 2);
                for (const float norm : norms) CHECK(norm >= 0.0f);
            }
}

void test_raycaster_stays_within_its_picture() {
    std::vector<scenes::Solid> solids;
    for (int i = 0; i < 40; ++i) {
        scenes::Solid solid{float(i % 6 - 1), uniform(0.1f, 0.9f), {}, {1, 0.5f, 0.2f}};
        for (int k = 0; k < 12; ++k) solid.world_to_local[k] = uniform(-1, 1) + (k % 5 == 0 ? 3.0f : 0.0f);
        solids.push_back(solid);
    }
    const float viewmat[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 0, 0, 0, 1};
    for (const int size : {1, 5, 32}) {
        const float K[9] = {float(size), 0, 0.5f * float(size), 0, float(size), 0.5f * float(size), 0, 0, 1};
        std::vector<uint8_t> rgba(size_t(size * size * 4));
        kernels().raycast({solids.data(), int(solids.size()), viewmat, K, size, rgba.data()});
        CHECK(std::any_of(rgba.begin(), rgba.end(), [](uint8_t value) { return value > 0; }));
    }
}

}  // namespace
}  // namespace splatdistill

int main() {
    using namespace splatdistill;
    for (const std::string& name : levels()) {
        set_level(name);
        CHECK(name == level());
        raster::baseline::test_primitives();
#if defined(__x86_64__)
        if (name == "avx2") raster::avx2::test_primitives();
        if (name == "avx512") raster::avx512::test_primitives();
#endif
        test_binning_lists_every_gaussian_that_a_tile_can_see();
        test_foreign_state_is_refused();
        test_odd_sizes_stay_within_their_arrays();
        test_number_of_threads_changes_no_bit();
        test_diffusion_steps_stay_within_their_arrays();
        test_raycaster_stays_within_its_picture();
        std::printf("%s: %s\n", name.c_str(), failed_checks ? "failed" : "passed");
    }
    return failed_checks ? 1 : 0;
}
