// Which instruction set the kernels use. One build holds code for every target; the best one is chosen at run time.
#pragma once

#include <string>
#include <vector>

namespace lowbit {

// Names of the targets compiled in that this CPU has, best first: "AVX3_ZEN4", "AVX3_DL", "AVX2", "EMU128", ...
std::vector<std::string> SimdTargets();

// The one in use.
std::string SimdCurrent();

// Uses the named target from now on, in every thread; an empty name goes back to the best. Throws InputError for a
// target the CPU lacks. Not to be called while kernels run.
void SimdForce(const std::string& name);

}  // namespace lowbit
