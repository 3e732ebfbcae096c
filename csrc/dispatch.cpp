// Compiled for the baseline, as is everything that runs before a level has been chosen.
#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace splatdistill {

namespace baseline {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

namespace {

struct Level {
    const char* name;
    const Kernels* kernels;
    bool (*runs_here)();  // every instruction set that setup.py lets the level use
};

const Level kLevels[] = {
    {"baseline", &baseline::kKernels, [] { return true; }},
#if defined(__x86_64__)
    {"avx2", &avx2::kKernels,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     }},
    {"avx512", &avx512::kKernels,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
};

const Level* widest() {
    const Level* found = kLevels;
    for (const Level& level : kLevels)
        if (level.runs_here()) found = &level;
    return found;
}

std::atomic<const Level*>& current() {
    static std::atomic<const Level*> level{widest()};
    return level;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

const char* level() { return current().load(std::memory_order_relaxed)->name; }

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Level& level : kLevels)
        if (level.runs_here()) names.push_back(level.name);
    return names;
}

void set_level(const std::string& name) {
    std::string runs;
    for (const Level& level : kLevels) {
        if (!level.runs_here()) continue;
        if (name == level.name) return current().store(&level);
        runs += (runs.empty() ? "" : ", ") + std::string(level.name);
    }
    throw std::invalid_argument("this processor has no level '" + name + "' of vector instructions, only " +
                                runs);
}

}  // namespace splatdistill
