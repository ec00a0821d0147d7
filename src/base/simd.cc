#include "src/base/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/base/simd.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
int64_t Target() { return HWY_TARGET; }
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "src/base/error.h"
#include "src/io/text.h"

namespace lowbit {
namespace {
HWY_EXPORT(Target);

struct Named {
  int64_t bit;
  std::string name;
};

const std::vector<Named>& Supported() {
  static const std::vector<Named>& supported = *[] {  // never destroyed: other threads may still read it at exit
    auto* found = new std::vector<Named>;
    // A lower bit is a better target.
    for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
      found->push_back({rest & -rest, hwy::TargetName(rest & -rest)});
    }
    return found;
  }();
  return supported;
}
}  // namespace

std::vector<std::string> SimdTargets() {
  std::vector<std::string> names;
  for (const Named& target : Supported()) names.push_back(target.name);
  return names;
}

std::string SimdCurrent() { return hwy::TargetName(HWY_DYNAMIC_DISPATCH(Target)()); }

void SimdForce(const std::string& name) {
  int64_t bit = 0;  // 0: back to the best target
  std::string known;
  for (const Named& target : Supported()) {
    if (target.name == name) bit = target.bit;
    known += (known.empty() ? "" : ", ") + target.name;
  }
  if (bit == 0 && !name.empty()) {
    throw InputError("SIMD target:").Expected("one of ", known, " on this machine").Found(Quoted(name));
  }
  hwy::SetSupportedTargetsForTest(bit);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace lowbit
#endif  // HWY_ONCE
