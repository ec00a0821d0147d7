// Python's lock around the core's work.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "src/base/error.h"

namespace lowbit {

// Once the interpreter ends, Python gives its lock to no other thread any more. Before 3.14 it ends a thread that asks,
// with pthread_exit, whose unwinding must neither meet a destructor that is noexcept (std::terminate) nor drop
// references without the lock. So it stops here: the thread sleeps until the process ends, as in 3.14.
[[noreturn]] inline void SleepForGood() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Whether the interpreter ends. The thread that ends it may still call us.
inline bool InterpreterEnds() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Calls a function of Python's that may end the thread.
template <class F>
auto CallPython(const F& function) {
  try {
    return function();
  } catch (...) {  // pthread_exit: Python's own functions throw nothing
    SleepForGood();
  }
}

// Lets other threads use Python for as long as it lives.
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

// The reverse, inside a GilRelease of the same thread. Throws Error once the interpreter ends, also in the thread that
// ends it: nothing of Python's is called then, and what is locked gets unlocked.
class GilAcquire {
 public:
  GilAcquire() {
    if (InterpreterEnds()) throw Error("the interpreter ends: nothing in Python is called any more");
    state_ = CallPython(PyGILState_Ensure);
  }
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace lowbit
