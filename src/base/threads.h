// A pool of threads that splits one loop at a time.
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

// Calls task(0) ... task(num_tasks - 1) on up to num_threads threads, the caller's included, and returns when all are
// done. Tasks start in order and are handed out one at a time. The first exception a task throws is rethrown here, and
// tasks that have not started by then are dropped. Calls from several threads take turns. Tasks must not call it again,
// nor Python. Threads are kept for the next loops; those that no loop has asked for in a while end.
void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task);

// How many threads loops over rows of element-wise work are worth: waking the others costs more than a few rows.
inline size_t RowThreads(size_t num_rows, size_t num_threads) { return num_rows < 4 ? 1 : num_threads; }

// Processors this process may use, at least 1.
size_t AvailableThreads();

}  // namespace lowbit
