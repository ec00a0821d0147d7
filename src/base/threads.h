// A thread pool that runs one loop at a time.
#pragma once

#include <cstddef>
#include <type_traits>

namespace lowbit {

// A reference to a callable void(size_t task); the callable must outlive the call it is passed to.
class TaskRef {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, TaskRef>>>
  TaskRef(F&& f)  // NOLINT: implicit on purpose, so that lambdas pass as arguments
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, size_t task) { (*static_cast<std::remove_reference_t<F>*>(object))(task); }) {}

  void operator()(size_t task) const { call_(object_, task); }

 private:
  void* object_;
  void (*call_)(void*, size_t);
};

// Calls task(0) ... task(num_tasks - 1) on up to num_threads threads, including the caller's, and returns when all are
// done. Tasks start in order, one at a time. The first exception of a task is rethrown here, and tasks that have not
// started are dropped. Calls from several threads run one after another. Tasks must not call ParallelFor or Python.
// Threads are kept for later loops; those that are not needed for a while end.
void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task);

// The number of threads for element-wise loops over rows: waking threads costs more than a few rows.
inline size_t RowThreads(size_t num_rows, size_t num_threads) { return num_rows < 4 ? 1 : num_threads; }

// Number of processors that this process may use, at least 1.
size_t AvailableThreads();

}  // namespace lowbit
