// Each solid is intersected with the rays of its own screen rectangle, row by row, against a depth buffer;
// loops over a row are branch-free so that the compiler vectorises them. Rays are p(t) = origin + t *
// direction with direction_z = 1 in camera space, so that t is the depth and survives the affine map into a
// solid's local space.
#include "scenes/raycast.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace splatdistill::scenes::SPLATDISTILL_LEVEL {
namespace {

constexpr float kMiss = 1e30f;
constexpr int kSamples = 2;  // rays a pixel, along one axis

struct Vec {
    float x, y, z;
};
struct Hit {
    float t;
    Vec normal;  // local space, not normalized
};

inline float dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec along(Vec o, Vec d, float t) { return {o.x + t * d.x, o.y + t * d.y, o.z + t * d.z}; }
inline Hit nearer(Hit a, Hit b) {
    const bool first = a.t <= b.t;
    return {
        first ? a.t : b.t,
        {first ? a.normal.x : b.normal.x, first ? a.normal.y : b.normal.y, first ? a.normal.z : b.normal.z}};
}
inline float away_from_zero(float v) { return std::fabs(v) < 1e-9f ? 1e-9f : v; }

// Unit sphere, of which the part with z >= clip is kept and closed with a disc.
struct Ellipsoid {
    float clip;
    Hit operator()(Vec o, Vec d, float) const {
        const float a = dot(d, d), b = dot(o, d), c = dot(o, o) - 1.f, disc = b * b - a * c;
        const float root = std::sqrt(std::max(disc, 0.f));
        const float t0 = (-b - root) / a, t1 = (-b + root) / a, t2 = (clip - o.z) / away_from_zero(d.z);
        const Vec p0 = along(o, d, t0), p1 = along(o, d, t1), p2 = along(o, d, t2);
        const bool hit0 = disc > 0.f && t0 > 0.f && p0.z >= clip,
                   hit1 = disc > 0.f && t1 > 0.f && p1.z >= clip;
        const bool hit2 = t2 > 0.f && p2.x * p2.x + p2.y * p2.y <= 1.f - clip * clip;
        const Hit sphere = nearer({hit0 ? t0 : kMiss, p0}, {hit1 ? t1 : kMiss, p1});
        return nearer(sphere, {hit2 ? t2 : kMiss, {0.f, 0.f, -1.f}});
    }
};

struct Box {
    Hit operator()(Vec o, Vec d, float) const {
        const float ix = 1.f / away_from_zero(d.x), iy = 1.f / away_from_zero(d.y),
                    iz = 1.f / away_from_zero(d.z);
        const float nx = -o.x * ix - std::fabs(ix), ny = -o.y * iy - std::fabs(iy),
                    nz = -o.z * iz - std::fabs(iz);
        const float fx = -o.x * ix + std::fabs(ix), fy = -o.y * iy + std::fabs(iy),
                    fz = -o.z * iz + std::fabs(iz);
        const float enter = std::max(nx, std::max(ny, nz)), leave = std::min(fx, std::min(fy, fz));
        const bool on_x = nx >= ny && nx >= nz, on_y = !on_x && ny >= nz;
        return {enter < leave && enter > 0.f ? enter : kMiss,
                {on_x ? -d.x : 0.f, on_y ? -d.y : 0.f, on_x || on_y ? 0.f : -d.z}};
    }
};

// Capped cone along z: radius 1 at z = -1, `top` at z = 1.
struct Frustum {
    float top;
    Hit operator()(Vec o, Vec d, float) const {
        const float mid = .5f * (1.f + top), slope = .5f * (top - 1.f), r = mid + slope * o.z;
        const float a = away_from_zero(d.x * d.x + d.y * d.y - slope * slope * d.z * d.z);
        const float b = o.x * d.x + o.y * d.y - slope * d.z * r, c = o.x * o.x + o.y * o.y - r * r;
        const float disc = b * b - a * c, root = std::sqrt(std::max(disc, 0.f));
        const float t0 = (-b - root) / a, t1 = (-b + root) / a;
        const float t2 = (-1.f - o.z) / away_from_zero(d.z), t3 = (1.f - o.z) / away_from_zero(d.z);
        const Vec p0 = along(o, d, t0), p1 = along(o, d, t1), p2 = along(o, d, t2), p3 = along(o, d, t3);
        const bool hit0 = disc > 0.f && t0 > 0.f && std::fabs(p0.z) <= 1.f;
        const bool hit1 = disc > 0.f && t1 > 0.f && std::fabs(p1.z) <= 1.f;
        const bool hit2 = t2 > 0.f && p2.x * p2.x + p2.y * p2.y <= 1.f;
        const bool hit3 = t3 > 0.f && p3.x * p3.x + p3.y * p3.y <= top * top;
        const Hit side = nearer({hit0 ? t0 : kMiss, {p0.x, p0.y, -slope * (mid + slope * p0.z)}},
                                {hit1 ? t1 : kMiss, {p1.x, p1.y, -slope * (mid + slope * p1.z)}});
        const Hit caps = nearer({hit2 ? t2 : kMiss, {0.f, 0.f, -1.f}}, {hit3 ? t3 : kMiss, {0.f, 0.f, 1.f}});
        return nearer(side, caps);
    }
};

// Triangular prism: the triangle (-1,-1) (1,-1) (0,1) of the xz plane, extruded over y in [-1, 1].
struct Prism {
    Hit operator()(Vec o, Vec d, float) const {
        const float normals[5][4] = {{0.f, 1.f, 0.f, 1.f},
                                     {0.f, -1.f, 0.f, 1.f},
                                     {0.f, 0.f, -1.f, 1.f},
                                     {2.f, 0.f, 1.f, 1.f},
                                     {-2.f, 0.f, 1.f, 1.f}};
        float enter = -kMiss, leave = kMiss;
        Vec normal{0.f, 0.f, 1.f};
        for (const auto& n : normals) {
            const float rate = away_from_zero(n[0] * d.x + n[1] * d.y + n[2] * d.z);
            const float t = (n[3] - n[0] * o.x - n[1] * o.y - n[2] * o.z) / rate;
            const bool entering = rate < 0.f, later = entering && t > enter;
            enter = later ? t : enter;
            normal = {later ? n[0] : normal.x, later ? n[1] : normal.y, later ? n[2] : normal.z};
            leave = !entering && t < leave ? t : leave;
        }
        return {enter < leave && enter > 0.f ? enter : kMiss, normal};
    }
};

// Torus around z with ring radius 1. `march` finds where the rays of a row end (sphere tracing from the
// bounding sphere, all rays of the row in step, so that the loop over rays vectorises); the call then tells
// hits from misses.
struct Torus {
    float tube;
    void march(Vec o, Vec row, Vec right, float first, float step, int count, float* t) const {
        const float reach = 1.f + tube;
#pragma omp simd
        for (int i = 0; i < count; ++i) {
            const Vec d = along(row, right, first + i * step);
            const float a = dot(d, d), b = dot(o, d), disc = b * b - a * (dot(o, o) - reach * reach);
            t[i] = (-b - std::sqrt(std::max(disc, 0.f))) / a;
        }
        for (int k = 0; k < 40; ++k) {
#pragma omp simd
            for (int i = 0; i < count; ++i) {
                const Vec d = along(row, right, first + i * step);
                t[i] += distance(along(o, d, t[i])) / std::sqrt(dot(d, d));
            }
        }
    }
    float distance(Vec p) const {
        const float ring = std::sqrt(p.x * p.x + p.y * p.y) - 1.f;
        return std::sqrt(ring * ring + p.z * p.z) - tube;
    }
    Hit operator()(Vec o, Vec d, float t) const {
        const Vec p = along(o, d, t);
        const float shrink = 1.f - 1.f / std::max(std::sqrt(p.x * p.x + p.y * p.y), 1e-6f);
        return {t > 0.f && distance(p) < 1e-2f ? t : kMiss, {p.x * shrink, p.y * shrink, p.z}};
    }
};

struct Buffers {
    std::vector<float> depth, nx, ny, nz, march;  // march: one row
    std::vector<int> solid;
    explicit Buffers(int n) : depth(n, kMiss), nx(n), ny(n), nz(n), march(n), solid(n, -1) {}
};

struct Eye {
    Vec position, right, down, forward;  // world space
    float fx, fy, cx, cy;                // in sub-pixels
    int size;                            // sub-pixels a side
};

Eye make_eye(const RaycastView& view) {
    const float* m = view.viewmat;
    const Vec right{m[0], m[1], m[2]}, down{m[4], m[5], m[6]}, forward{m[8], m[9], m[10]};
    const Vec position{-(m[0] * m[3] + m[4] * m[7] + m[8] * m[11]),
                       -(m[1] * m[3] + m[5] * m[7] + m[9] * m[11]),
                       -(m[2] * m[3] + m[6] * m[7] + m[10] * m[11])};
    const float s = kSamples;
    return {position,      right,         down,
            forward,       view.K[0] * s, view.K[4] * s,
            view.K[2] * s, view.K[5] * s, view.size * kSamples};
}

// Screen rectangle [x0, x1) x [y0, y1) that holds the solid, from the bounding sphere of its local cube.
struct Rectangle {
    int x0, x1, y0, y1;
};
Rectangle bounds(const Solid& solid, const Eye& eye) {
    const float* m = solid.world_to_local;
    // Columns of the inverse: cofactors of the 3x3 part over its determinant.
    const Vec r0{m[0], m[1], m[2]}, r1{m[4], m[5], m[6]}, r2{m[8], m[9], m[10]};
    const auto cross = [](Vec a, Vec b) {
        return Vec{a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
    };
    const Vec c0 = cross(r1, r2), c1 = cross(r2, r0), c2 = cross(r0, r1);
    const float inverse_det = 1.f / dot(r0, c0);
    const Vec center{-(c0.x * m[3] + c1.x * m[7] + c2.x * m[11]) * inverse_det,
                     -(c0.y * m[3] + c1.y * m[7] + c2.y * m[11]) * inverse_det,
                     -(c0.z * m[3] + c1.z * m[7] + c2.z * m[11]) * inverse_det};
    const bool torus = int(solid.kind) == Solid::kTorus;
    const float ring = torus ? 1.f + solid.parameter : 1.f, high = torus ? solid.parameter : 1.f;
    const float radius = std::fabs(inverse_det) *
                         std::sqrt(ring * ring * (dot(c0, c0) + dot(c1, c1)) + high * high * dot(c2, c2));
    const Vec offset{center.x - eye.position.x, center.y - eye.position.y, center.z - eye.position.z};
    const float z = dot(offset, eye.forward);
    if (!(z > radius + 1e-3f)) return {0, eye.size, 0, eye.size};
    const float reach = radius / (z - radius) * 1.5f;
    const float x = dot(offset, eye.right) / z, y = dot(offset, eye.down) / z;
    const auto clamp = [&](float v) { return int(std::min(std::max(v, 0.f), float(eye.size))); };
    return {clamp((x - reach) * eye.fx + eye.cx), clamp((x + reach) * eye.fx + eye.cx + 1.f),
            clamp((y - reach) * eye.fy + eye.cy), clamp((y + reach) * eye.fy + eye.cy + 1.f)};
}

template <class Intersect>
void cast(const Solid& solid, int index, const Eye& eye, const Intersect& intersect, Buffers& out) {
    const float* m = solid.world_to_local;
    const auto linear = [&](Vec v) {
        return Vec{m[0] * v.x + m[1] * v.y + m[2] * v.z, m[4] * v.x + m[5] * v.y + m[6] * v.z,
                   m[8] * v.x + m[9] * v.y + m[10] * v.z};
    };
    const Vec turned = linear(eye.position), origin{turned.x + m[3], turned.y + m[7], turned.z + m[11]};
    const Vec right = linear(eye.right), down = linear(eye.down), forward = linear(eye.forward);
    const Rectangle box = bounds(solid, eye);
    for (int y = box.y0; y < box.y1; ++y) {
        const float v = (y + .5f - eye.cy) / eye.fy;
        const Vec row{forward.x + v * down.x, forward.y + v * down.y, forward.z + v * down.z};
        const int base = y * eye.size;
        float* depth = out.depth.data() + base;
        float *nx = out.nx.data() + base, *ny = out.ny.data() + base, *nz = out.nz.data() + base;
        int* owner = out.solid.data() + base;
        float* t = out.march.data();
        if constexpr (std::is_same_v<Intersect, Torus>)
            intersect.march(origin, row, right, (box.x0 + .5f - eye.cx) / eye.fx, 1.f / eye.fx,
                            box.x1 - box.x0, t + box.x0);
#pragma omp simd
        for (int x = box.x0; x < box.x1; ++x) {
            const float u = (x + .5f - eye.cx) / eye.fx;
            const Hit hit =
                intersect(origin, {row.x + u * right.x, row.y + u * right.y, row.z + u * right.z}, t[x]);
            const bool closer = hit.t < depth[x];
            depth[x] = closer ? hit.t : depth[x];
            nx[x] = closer ? hit.normal.x : nx[x];
            ny[x] = closer ? hit.normal.y : ny[x];
            nz[x] = closer ? hit.normal.z : nz[x];
            owner[x] = closer ? index : owner[x];
        }
    }
}

// Ambient light, one lamp fixed in the world (above, to the front left) and a weak headlight: the numbers of
// scene/shading.py.
Vec shade(const RaycastView& view, const Eye& eye, const Buffers& buffers, int x, int y) {
    const int i = y * eye.size + x;
    const Solid& solid = view.solids[buffers.solid[i]];
    const float* m = solid.world_to_local;
    const float lx = buffers.nx[i], ly = buffers.ny[i], lz = buffers.nz[i];
    Vec n{m[0] * lx + m[4] * ly + m[8] * lz, m[1] * lx + m[5] * ly + m[9] * lz,
          m[2] * lx + m[6] * ly + m[10] * lz};
    const float u = (x + .5f - eye.cx) / eye.fx, v = (y + .5f - eye.cy) / eye.fy;
    Vec d{eye.forward.x + u * eye.right.x + v * eye.down.x, eye.forward.y + u * eye.right.y + v * eye.down.y,
          eye.forward.z + u * eye.right.z + v * eye.down.z};
    const float scale = 1.f / std::sqrt(std::max(dot(n, n), 1e-20f)),
                facing = -dot(n, d) * scale / std::sqrt(dot(d, d));
    const float side = facing < 0.f ? -scale : scale;
    const float lamp = std::max(0.f, (.40f * n.x + .35f * n.y + .85f * n.z) * side);
    const float light = std::min(1.05f, .42f + .42f * lamp + .28f * std::fabs(facing));
    return {solid.color[0] * light, solid.color[1] * light, solid.color[2] * light};
}

}  // namespace

void raycast(const RaycastView& view) {
    const Eye eye = make_eye(view);
    Buffers buffers(eye.size * eye.size);
    for (int i = 0; i < view.solid_count; ++i) {
        const Solid& solid = view.solids[i];
        switch (int(solid.kind)) {
            case Solid::kEllipsoid:
                cast(solid, i, eye, Ellipsoid{solid.parameter}, buffers);
                break;
            case Solid::kBox:
                cast(solid, i, eye, Box{}, buffers);
                break;
            case Solid::kFrustum:
                cast(solid, i, eye, Frustum{solid.parameter}, buffers);
                break;
            case Solid::kPrism:
                cast(solid, i, eye, Prism{}, buffers);
                break;
            case Solid::kTorus:
                cast(solid, i, eye, Torus{solid.parameter}, buffers);
                break;
            default:
                break;
        }
    }
    const float weight = 255.f / (kSamples * kSamples);
    for (int y = 0; y < view.size; ++y)
        for (int x = 0; x < view.size; ++x) {
            float sum[4] = {0.f, 0.f, 0.f, 0.f};
            for (int sy = y * kSamples; sy < (y + 1) * kSamples; ++sy)
                for (int sx = x * kSamples; sx < (x + 1) * kSamples; ++sx) {
                    if (buffers.solid[sy * eye.size + sx] < 0) continue;
                    const Vec c = shade(view, eye, buffers, sx, sy);
                    sum[0] += std::min(c.x, 1.f);
                    sum[1] += std::min(c.y, 1.f);
                    sum[2] += std::min(c.z, 1.f);
                    sum[3] += 1.f;
                }
            for (int k = 0; k < 4; ++k)
                view.rgba[(y * view.size + x) * 4 + k] = std::uint8_t(sum[k] * weight + .5f);
        }
}

}  // namespace splatdistill::scenes::SPLATDISTILL_LEVEL
