// Real spherical harmonics of degree 0 to 3, sixteen directions at a time (signs and order of 2308.04079).
#pragma once

#include "raster/simd.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

constexpr float kSh0 = 0.28209479177387814f;
constexpr float kSh1 = 0.4886025119029199f;
constexpr float kSh2[5] = {1.0925484305920792f, -1.0925484305920792f, 0.31539156525252005f,
                           -1.0925484305920792f, 0.5462742152960396f};
constexpr float kSh3[7] = {-0.5900435899266435f, 2.890611442640554f,   -0.4570457994644658f,
                           0.3731763325901154f,  -0.4570457994644658f, 1.445305721320277f,
                           -0.5900435899266435f};

// The (degree + 1)^2 basis functions at the unit direction (x, y, z).
SPLATDISTILL_INLINE void sh_basis(int degree, vf x, vf y, vf z, vf* basis) {
    basis[0] = splat(kSh0);
    if (degree < 1) return;
    basis[1] = y * -kSh1;
    basis[2] = z * kSh1;
    basis[3] = x * -kSh1;
    if (degree < 2) return;
    vf xx = x * x, yy = y * y, zz = z * z, xy = x * y;
    basis[4] = xy * kSh2[0];
    basis[5] = y * z * kSh2[1];
    basis[6] = (zz * 2.0f - xx - yy) * kSh2[2];
    basis[7] = x * z * kSh2[3];
    basis[8] = (xx - yy) * kSh2[4];
    if (degree < 3) return;
    basis[9] = y * (xx * 3.0f - yy) * kSh3[0];
    basis[10] = xy * z * kSh3[1];
    basis[11] = y * (zz * 4.0f - xx - yy) * kSh3[2];
    basis[12] = z * (zz * 2.0f - xx * 3.0f - yy * 3.0f) * kSh3[3];
    basis[13] = x * (zz * 4.0f - xx - yy) * kSh3[4];
    basis[14] = z * (xx - yy) * kSh3[5];
    basis[15] = x * (xx - yy * 3.0f) * kSh3[6];
}

// The gradient in (x, y, z) of sum_i weight[i] basis[i], taken as polynomials; only its part
// perpendicular to the direction has a meaning.
SPLATDISTILL_INLINE void sh_gradient(int degree, vf x, vf y, vf z, const vf* weight, vf& gx, vf& gy, vf& gz) {
    gx = weight[3] * -kSh1;
    gy = weight[1] * -kSh1;
    gz = weight[2] * kSh1;
    if (degree < 2) return;
    vf w4 = weight[4] * kSh2[0], w5 = weight[5] * kSh2[1], w6 = weight[6] * (2.0f * kSh2[2]);
    vf w7 = weight[7] * kSh2[3], w8 = weight[8] * (2.0f * kSh2[4]);
    gx += w4 * y - w6 * x + w7 * z + w8 * x;
    gy += w4 * x + w5 * z - w6 * y - w8 * y;
    gz += w5 * y + w6 * z * 2.0f + w7 * x;
    if (degree < 3) return;
    vf xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z;
    vf w9 = weight[9] * kSh3[0], w10 = weight[10] * kSh3[1], w11 = weight[11] * kSh3[2];
    vf w12 = weight[12] * kSh3[3], w13 = weight[13] * kSh3[4], w14 = weight[14] * kSh3[5];
    vf w15 = weight[15] * kSh3[6];
    gx += w9 * xy * 6.0f + w10 * yz - w11 * xy * 2.0f - w12 * xz * 6.0f + w13 * (zz * 4.0f - xx * 3.0f - yy) +
          w14 * xz * 2.0f + w15 * (xx - yy) * 3.0f;
    gy += w9 * (xx - yy) * 3.0f + w10 * xz + w11 * (zz * 4.0f - xx - yy * 3.0f) - w12 * yz * 6.0f -
          w13 * xy * 2.0f - w14 * yz * 2.0f - w15 * xy * 6.0f;
    gz += w10 * xy + w11 * yz * 8.0f + w12 * (zz * 2.0f - xx - yy) * 3.0f + w13 * xz * 8.0f + w14 * (xx - yy);
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
