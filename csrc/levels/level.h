// The kernels are compiled once for each level of vector instructions: `baseline` runs on every processor of
// the architecture, `avx2` (with FMA) and `avx512` on those that dispatch.h has asked. The build defines
// SPLATDISTILL_LEVEL; what a level defines lives in a namespace of that name, and what levels share is always
// inlined. So the linker, which keeps one of several equal functions, never takes a wide one for a narrow
// one.
#pragma once

#if !defined(SPLATDISTILL_LEVEL)
#define SPLATDISTILL_LEVEL baseline
#endif

#define SPLATDISTILL_INLINE inline __attribute__((always_inline))
