// The instruction set of the kernels. One build has code for every target; the best one is chosen at run time.
#pragma once

#include <string>
#include <vector>

namespace lowbit {

// Names of the compiled targets that this CPU supports, best first: "AVX3_ZEN4", "AVX3_DL", "AVX2", "EMU128", ...
std::vector<std::string> SimdTargets();

// The target in use.
std::string SimdCurrent();

// Uses the named target from now on, in every thread. An empty name restores the best one. Throws InputError if the CPU
// lacks the target. Do not call it while kernels run.
void SimdForce(const std::string& name);

}  // namespace lowbit
