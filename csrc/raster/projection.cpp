// Fused projection and color: sixteen Gaussians at a time, all views of a Gaussian in one go, so that
// gradients are summed over views in registers and in a fixed order.
#include <vector>

#include "raster/raster.h"
#include "raster/sh.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {
namespace {

constexpr int kMaxSh = 16;

struct Camera {
    float R[3][3], t[3];
    float fx, fy, cx, cy;
    float low_x, high_x, low_y, high_y;  // where x/z and y/z are clamped in the Jacobian
    float position[3];
};

Camera read_camera(const Scene& scene, int64_t view) {
    Camera c;
    const float* m = scene.viewmats + 16 * view;
    const float* K = scene.Ks + 9 * view;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) c.R[i][j] = m[4 * i + j];
        c.t[i] = m[4 * i + 3];
    }
    c.fx = K[0], c.fy = K[4], c.cx = K[2], c.cy = K[5];
    float margin_x = 0.15f * scene.width / c.fx, margin_y = 0.15f * scene.height / c.fy;
    c.low_x = -(c.cx / c.fx + margin_x), c.high_x = (scene.width - c.cx) / c.fx + margin_x;
    c.low_y = -(c.cy / c.fy + margin_y), c.high_y = (scene.height - c.cy) / c.fy + margin_y;
    // position = -R^-1 t by Cramer's rule: the matrix may carry a scale
    double cross[3][3], det = 0.0;
    for (int i = 0; i < 3; ++i) {
        int j = (i + 1) % 3, k = (i + 2) % 3;
        for (int a = 0; a < 3; ++a) {
            int b = (a + 1) % 3, d = (a + 2) % 3;
            cross[i][a] = double(c.R[j][b]) * c.R[k][d] - double(c.R[j][d]) * c.R[k][b];
        }
    }
    for (int a = 0; a < 3; ++a) det += c.R[0][a] * cross[0][a];
    for (int a = 0; a < 3; ++a)
        c.position[a] = float(-(cross[0][a] * c.t[0] + cross[1][a] * c.t[1] + cross[2][a] * c.t[2]) / det);
    return c;
}

// What does not depend on the view.
struct Gaussians {
    vf mean[3];
    vf q[4], inverse_norm;  // unit quaternion wxyz
    vf R[3][3];
    vf scale[3];
};

Gaussians read_gaussians(const Scene& scene, int64_t first, int count) {
    Gaussians g;
    for (int k = 0; k < 3; ++k) {
        g.mean[k] = gather(scene.means + 3 * first, 3, k, count);
        g.scale[k] = gather(scene.scales + 3 * first, 3, k, count);
    }
    for (int k = 0; k < 4; ++k) g.q[k] = gather(scene.quats + 4 * first, 4, k, count);
    g.inverse_norm = 1.0f / sqrt(g.q[0] * g.q[0] + g.q[1] * g.q[1] + g.q[2] * g.q[2] + g.q[3] * g.q[3]);
    for (int k = 0; k < 4; ++k) g.q[k] *= g.inverse_norm;
    vf w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
    g.R[0][0] = 1.0f - (y * y + z * z) * 2.0f;
    g.R[0][1] = (x * y - w * z) * 2.0f;
    g.R[0][2] = (x * z + w * y) * 2.0f;
    g.R[1][0] = (x * y + w * z) * 2.0f;
    g.R[1][1] = 1.0f - (x * x + z * z) * 2.0f;
    g.R[1][2] = (y * z - w * x) * 2.0f;
    g.R[2][0] = (x * z - w * y) * 2.0f;
    g.R[2][1] = (y * z + w * x) * 2.0f;
    g.R[2][2] = 1.0f - (x * x + y * y) * 2.0f;
    return g;
}

// The EWA projection (2308.04079, eq. 5): with J the Jacobian of the pinhole at the mean and W the camera's
// rotation, M = J W R S and the 2D covariance is M M^T + eps2d I.
struct Ewa {
    vf X, Y, Z, inverse_z;
    vf tx, ty;          // X/Z, Y/Z, clamped
    vm free_x, free_y;  // where the clamp did not act
    vf J00, J02, J11, J12;
    vf T[2][3], A[2][3], M[2][3];  // J W, T R, A S
    vf xx, xy, yy, det;
};

Ewa project_lanes(const Camera& c, const Gaussians& g, float eps2d) {
    Ewa e;
    e.X = g.mean[0] * c.R[0][0] + g.mean[1] * c.R[0][1] + g.mean[2] * c.R[0][2] + c.t[0];
    e.Y = g.mean[0] * c.R[1][0] + g.mean[1] * c.R[1][1] + g.mean[2] * c.R[1][2] + c.t[1];
    e.Z = g.mean[0] * c.R[2][0] + g.mean[1] * c.R[2][1] + g.mean[2] * c.R[2][2] + c.t[2];
    e.inverse_z = 1.0f / e.Z;
    vf x = e.X * e.inverse_z, y = e.Y * e.inverse_z;
    e.tx = clamp(x, splat(c.low_x), splat(c.high_x));
    e.ty = clamp(y, splat(c.low_y), splat(c.high_y));
    e.free_x = both(less_equal(x, e.tx), less_equal(e.tx, x));
    e.free_y = both(less_equal(y, e.ty), less_equal(e.ty, y));
    e.J00 = e.inverse_z * c.fx;
    e.J11 = e.inverse_z * c.fy;
    e.J02 = -e.J00 * e.tx;
    e.J12 = -e.J11 * e.ty;
    for (int k = 0; k < 3; ++k) {
        e.T[0][k] = e.J00 * c.R[0][k] + e.J02 * c.R[2][k];
        e.T[1][k] = e.J11 * c.R[1][k] + e.J12 * c.R[2][k];
    }
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 3; ++k) {
            e.A[i][k] = e.T[i][0] * g.R[0][k] + e.T[i][1] * g.R[1][k] + e.T[i][2] * g.R[2][k];
            e.M[i][k] = e.A[i][k] * g.scale[k];
        }
    const vf *m = e.M[0], *n = e.M[1];
    vf mm = m[0] * m[0] + m[1] * m[1] + m[2] * m[2];
    vf nn = n[0] * n[0] + n[1] * n[1] + n[2] * n[2];
    e.xy = m[0] * n[0] + m[1] * n[1] + m[2] * n[2];
    e.xx = mm + eps2d;
    e.yy = nn + eps2d;
    // det(M M^T + eps I) = |m x n|^2 + eps (|m|^2 + |n|^2) + eps^2: no cancellation for thin ellipses
    vf c0 = m[1] * n[2] - m[2] * n[1], c1 = m[2] * n[0] - m[0] * n[2], c2 = m[0] * n[1] - m[1] * n[0];
    e.det = c0 * c0 + c1 * c1 + c2 * c2 + (mm + nn) * eps2d + eps2d * eps2d;
    return e;
}

struct View {
    vf x, y, z, inverse_length;  // unit direction from the camera to the mean
};

View view_direction(const Camera& c, const Gaussians& g) {
    vf x = g.mean[0] - c.position[0], y = g.mean[1] - c.position[1], z = g.mean[2] - c.position[2];
    vf inverse = 1.0f / sqrt(x * x + y * y + z * z);
    return {x * inverse, y * inverse, z * inverse, inverse};
}

// How many standard deviations reach alpha = 1/255, at most 3.33 ("StopThePop", 2402.00525, section B.2).
vf extent(vf opacity) {
    const float two_ln2 = 1.3862943611f;
    return min(sqrt(max(log2(max(opacity * 255.0f, splat(1.0f))) * two_ln2, vf{})), splat(3.33f));
}

vf ceil(vf x) {
    alignas(64) float lanes[kLanes];
    store(lanes, x);
    for (int l = 0; l < kLanes; ++l) lanes[l] = std::ceil(lanes[l]);
    return load(lanes);
}

void project_block(const Scene& s, const Camera* cameras, const Projection& out, int64_t first, int count) {
    Gaussians g = read_gaussians(s, first, count);
    vf opacity = gather(s.opacities + first, 1, 0, count);
    vf reach = extent(opacity);
    int terms = (s.sh_degree + 1) * (s.sh_degree + 1);
    vf sh[kMaxSh * 3], basis[kMaxSh];
    for (int k = 0; k < terms * 3; ++k) sh[k] = gather(s.sh + first * s.K * 3, s.K * 3, k, count);

    for (int64_t view = 0; view < s.V; ++view) {
        const Camera& c = cameras[view];
        Ewa e = project_lanes(c, g, s.eps2d);
        vf x = e.X * e.inverse_z * c.fx + c.cx, y = e.Y * e.inverse_z * c.fy + c.cy;
        vf inverse_det = 1.0f / e.det;
        vf conic[3] = {e.yy * inverse_det, -e.xy * inverse_det, e.xx * inverse_det};

        View d = view_direction(c, g);
        sh_basis(s.sh_degree, d.x, d.y, d.z, basis);
        vf color[3] = {splat(0.5f), splat(0.5f), splat(0.5f)};
        for (int k = 0; k < terms; ++k)
            for (int i = 0; i < 3; ++i) color[i] += basis[k] * sh[3 * k + i];

        vf radius_x = ceil(reach * sqrt(e.xx)), radius_y = ceil(reach * sqrt(e.yy));
        vm keep_it = both(less_equal(splat(s.near), e.Z), less_equal(e.Z, splat(s.far)));
        keep_it = both(keep_it, less_equal(splat(kAlphaMin), opacity));
        keep_it = both(keep_it, less(splat(s.radius_clip), max(radius_x, radius_y)));
        keep_it = both(keep_it, both(less(vf{}, x + radius_x), less(x - radius_x, splat(float(s.width)))));
        keep_it = both(keep_it, both(less(vf{}, y + radius_y), less(y - radius_y, splat(float(s.height)))));
        vf sum = x * 0.0f + y * 0.0f + conic[0] * 0.0f + conic[1] * 0.0f + conic[2] * 0.0f + e.det * 0.0f;
        sum += color[0] * 0.0f + color[1] * 0.0f + color[2] * 0.0f + opacity * 0.0f;
        keep_it = both(keep_it, is_finite(sum));
        keep_it = both(keep_it, both(less(vf{}, conic[0]), less(vf{}, conic[2])));
        vf zero = {};

        int64_t at = view * s.N + first;
        scatter(keep(keep_it, x), out.means2d + 2 * at, 2, 0, count);
        scatter(keep(keep_it, y), out.means2d + 2 * at, 2, 1, count);
        scatter(keep(keep_it, e.Z), out.depths + at, 1, 0, count);
        for (int i = 0; i < 3; ++i) {
            scatter(keep(keep_it, conic[i]), out.conics + 3 * at, 3, i, count);
            scatter(keep(keep_it, max(color[i], zero)), out.colors + 3 * at, 3, i, count);
        }
        vf largest = splat(1e9f);  // fits an int32
        vi rx = to_int(keep(keep_it, min(radius_x, largest)));
        vi ry = to_int(keep(keep_it, min(radius_y, largest)));
        scatter(rx, out.radii + 2 * at, 2, 0, count);
        scatter(ry, out.radii + 2 * at, 2, 1, count);
    }
}

// Gradients of one view's means2d, conics and depths to the mean, the rotation matrix and the scales.
void ewa_backward(const Camera& c, const Gaussians& g, const Ewa& e, vm visible, vf vx, vf vy, vf vz,
                  const vf (&v_conic)[3], vf (&v_mean)[3], vf (&v_R)[3][3], vf (&v_scale)[3]) {
    // conic Q = C^-1: dL/dC = -Q dL/dQ Q, with half of the off-diagonal's gradient on each side
    vf inverse_det = 1.0f / e.det;
    vf a = e.yy * inverse_det, b = -e.xy * inverse_det, d = e.xx * inverse_det;
    vf p = v_conic[0], q = v_conic[1] * 0.5f, r = v_conic[2];
    vf pa = p * a + q * b, pb = p * b + q * d, qa = q * a + r * b, qb = q * b + r * d;
    vf G00 = -(a * pa + b * qa), G01 = -(a * pb + b * qb), G11 = -(b * pb + d * qb);

    vf v_A[2][3], v_T[2][3];
    for (int k = 0; k < 3; ++k) {
        vf v_M0 = (G00 * e.M[0][k] + G01 * e.M[1][k]) * 2.0f;
        vf v_M1 = (G01 * e.M[0][k] + G11 * e.M[1][k]) * 2.0f;
        v_scale[k] += keep(visible, v_M0 * e.A[0][k] + v_M1 * e.A[1][k]);
        v_A[0][k] = v_M0 * g.scale[k];
        v_A[1][k] = v_M1 * g.scale[k];
    }
    for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k) v_R[i][k] += keep(visible, e.T[0][i] * v_A[0][k] + e.T[1][i] * v_A[1][k]);
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 3; ++k)
            v_T[i][k] = v_A[i][0] * g.R[k][0] + v_A[i][1] * g.R[k][1] + v_A[i][2] * g.R[k][2];
    vf v_J00 = v_T[0][0] * c.R[0][0] + v_T[0][1] * c.R[0][1] + v_T[0][2] * c.R[0][2];
    vf v_J02 = v_T[0][0] * c.R[2][0] + v_T[0][1] * c.R[2][1] + v_T[0][2] * c.R[2][2];
    vf v_J11 = v_T[1][0] * c.R[1][0] + v_T[1][1] * c.R[1][1] + v_T[1][2] * c.R[1][2];
    vf v_J12 = v_T[1][0] * c.R[2][0] + v_T[1][1] * c.R[2][1] + v_T[1][2] * c.R[2][2];

    // J00 = fx/Z, J02 = -fx tx/Z with tx = X/Z where free; the mean lands on fx X/Z + cx
    vf iz = e.inverse_z;
    vf v_tx = vx * c.fx + keep(e.free_x, v_J02 * -e.J00);
    vf v_ty = vy * c.fy + keep(e.free_y, v_J12 * -e.J11);
    vf v_iz = v_J00 * c.fx - v_J02 * e.tx * c.fx + v_J11 * c.fy - v_J12 * e.ty * c.fy;
    vf v_X = v_tx * iz, v_Y = v_ty * iz;
    vf v_Z = vz - iz * iz * (v_iz + v_tx * e.X + v_ty * e.Y);
    for (int k = 0; k < 3; ++k)
        v_mean[k] += keep(visible, v_X * c.R[0][k] + v_Y * c.R[1][k] + v_Z * c.R[2][k]);
}

// From the gradient of the rotation matrix to that of the quaternion before it was normalized.
void quaternion_backward(const Gaussians& g, const vf (&v)[3][3], vf (&v_q)[4]) {
    vf w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
    v_q[0] = (x * (v[2][1] - v[1][2]) + y * (v[0][2] - v[2][0]) + z * (v[1][0] - v[0][1])) * 2.0f;
    v_q[1] = (y * (v[0][1] + v[1][0]) + z * (v[0][2] + v[2][0]) + w * (v[2][1] - v[1][2])) * 2.0f -
             x * (v[1][1] + v[2][2]) * 4.0f;
    v_q[2] = (x * (v[0][1] + v[1][0]) + z * (v[1][2] + v[2][1]) + w * (v[0][2] - v[2][0])) * 2.0f -
             y * (v[0][0] + v[2][2]) * 4.0f;
    v_q[3] = (x * (v[0][2] + v[2][0]) + y * (v[1][2] + v[2][1]) + w * (v[1][0] - v[0][1])) * 2.0f -
             z * (v[0][0] + v[1][1]) * 4.0f;
    vf along = v_q[0] * w + v_q[1] * x + v_q[2] * y + v_q[3] * z;
    for (int k = 0; k < 4; ++k) v_q[k] = (v_q[k] - along * g.q[k]) * g.inverse_norm;
}

void project_block_backward(const Scene& s, const Camera* cameras, const int32_t* radii,
                            const ProjectionGradient& out, int64_t first, int count) {
    Gaussians g = read_gaussians(s, first, count);
    int terms = (s.sh_degree + 1) * (s.sh_degree + 1);
    vf sh[kMaxSh * 3], v_sh[kMaxSh * 3] = {}, basis[kMaxSh], weight[kMaxSh];
    for (int k = 0; k < terms * 3; ++k) sh[k] = gather(s.sh + first * s.K * 3, s.K * 3, k, count);
    vf v_mean[3] = {}, v_R[3][3] = {}, v_scale[3] = {}, v_q[4];
    vi ever = {};

    for (int64_t view = 0; view < s.V; ++view) {
        int64_t at = view * s.N + first;
        vi radius = gather<vi>(radii + 2 * at, 2, 0, count);
        vm visible = less(vi{}, radius);
        if (!bits(visible)) continue;
        ever = ever | radius;
        const Camera& c = cameras[view];
        vf vx = gather(out.means2d + 2 * at, 2, 0, count), vy = gather(out.means2d + 2 * at, 2, 1, count);
        vf vz = gather(out.depths + at, 1, 0, count), v_conic[3], v_color[3];
        for (int i = 0; i < 3; ++i) v_conic[i] = gather(out.conics + 3 * at, 3, i, count);
        for (int i = 0; i < 3; ++i) v_color[i] = keep(visible, gather(out.colors + 3 * at, 3, i, count));
        ewa_backward(c, g, project_lanes(c, g, s.eps2d), visible, vx, vy, vz, v_conic, v_mean, v_R, v_scale);

        View d = view_direction(c, g);
        d.x = keep(visible, d.x), d.y = keep(visible, d.y), d.z = keep(visible, d.z);
        sh_basis(s.sh_degree, d.x, d.y, d.z, basis);
        for (int i = 0; i < 3; ++i) {
            vf color = splat(0.5f);
            for (int k = 0; k < terms; ++k) color += basis[k] * sh[3 * k + i];
            v_color[i] = keep(less_equal(vf{}, color), v_color[i]);
            for (int k = 0; k < terms; ++k) v_sh[3 * k + i] += basis[k] * v_color[i];
        }
        if (s.sh_degree == 0) continue;
        for (int k = 1; k < terms; ++k)
            weight[k] = sh[3 * k] * v_color[0] + sh[3 * k + 1] * v_color[1] + sh[3 * k + 2] * v_color[2];
        vf gx, gy, gz;
        sh_gradient(s.sh_degree, d.x, d.y, d.z, weight, gx, gy, gz);
        vf along = gx * d.x + gy * d.y + gz * d.z;
        v_mean[0] += keep(visible, (gx - along * d.x) * d.inverse_length);
        v_mean[1] += keep(visible, (gy - along * d.y) * d.inverse_length);
        v_mean[2] += keep(visible, (gz - along * d.z) * d.inverse_length);
    }

    quaternion_backward(g, v_R, v_q);
    vm seen = less(vi{}, ever);  // a Gaussian that no view sees may hold anything
    for (int k = 0; k < 3; ++k) scatter(v_mean[k], out.v_means + 3 * first, 3, k, count);
    for (int k = 0; k < 3; ++k) scatter(v_scale[k], out.v_scales + 3 * first, 3, k, count);
    for (int k = 0; k < 4; ++k) scatter(keep(seen, v_q[k]), out.v_quats + 4 * first, 4, k, count);
    for (int k = 0; k < int(s.K) * 3; ++k)
        scatter(k < terms * 3 ? v_sh[k] : vf{}, out.v_sh + first * s.K * 3, s.K * 3, k, count);
}

// Call block(cameras.data(), first, count) for every sixteen Gaussians.
template <class Block>
void for_blocks(const Scene& scene, Block block) {
    std::vector<Camera> cameras(scene.V);
    for (int64_t view = 0; view < scene.V; ++view) cameras[view] = read_camera(scene, view);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < scene.N; first += kLanes)
        block(cameras.data(), first, int(scene.N - first < kLanes ? scene.N - first : kLanes));
}

}  // namespace

void project(const Scene& scene, const Projection& out) {
    for_blocks(scene, [&](const Camera* cameras, int64_t first, int count) {
        project_block(scene, cameras, out, first, count);
    });
}

void project_backward(const Scene& scene, const int32_t* radii, const ProjectionGradient& gradient) {
    for_blocks(scene, [&](const Camera* cameras, int64_t first, int count) {
        project_block_backward(scene, cameras, radii, gradient, first, count);
    });
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
