// Python's lock around calls of the core.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "src/base/error.h"

namespace lowbit {

// When the interpreter ends, no other thread gets Python's lock. Before 3.14, Python ends a thread that requests it with
// pthread_exit. The unwinding must neither reach a noexcept destructor (std::terminate) nor drop references without the
// lock. So the thread sleeps here until the process ends, as in 3.14.
[[noreturn]] inline void SleepForGood() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Whether the interpreter is ending. The thread that ends it may still call the core.
inline bool InterpreterEnds() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Calls a function of Python that may end the thread.
template <class F>
auto CallPython(const F& function) {
  try {
    return function();
  } catch (...) {  // pthread_exit: Python's own functions throw nothing
    SleepForGood();
  }
}

// Releases Python's lock during its lifetime.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    CallPython([&] { PyEval_RestoreThread(state_); });
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// The inverse, inside a GilRelease of the same thread. Throws Error when the interpreter ends, also in the thread that
// ends it: no Python function is called then, and locks are released.
class GilAcquire {
 public:
  GilAcquire() {
    if (InterpreterEnds()) throw Error("Python cannot be called: the interpreter is ending");
    state_ = CallPython(PyGILState_Ensure);
  }
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace lowbit
