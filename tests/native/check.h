// What a C++ test needs: CHECK says where something is not so, and the program goes on.
#pragma once
#include <cmath>
#include <cstdio>

inline int failed_checks = 0;

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            ++failed_checks;                                                    \
        }                                                                       \
    } while (0)

// |actual - expected| <= tolerance, which no NaN is.
#define CHECK_NEAR(actual, expected, tolerance)                                              \
    do {                                                                                     \
        const double a = (actual), e = (expected);                                           \
        if (!(std::fabs(a - e) <= (tolerance))) {                                            \
            std::printf("%s:%d: %s is %.9g, not %.9g\n", __FILE__, __LINE__, #actual, a, e); \
            ++failed_checks;                                                                 \
        }                                                                                    \
    } while (0)
