// One team of threads for all parallel work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace lowbit {

// A reference to a callable; the callable must outlive the call it is passed to.
template <typename Argument>
class FunctionRef {
 public:
  template <typename F, typename = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(F&& f)  // NOLINT: implicit on purpose, so that lambdas pass as arguments
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, Argument argument) {
          (*static_cast<std::remove_reference_t<F>*>(object))(static_cast<Argument>(argument));
        }) {}

  void operator()(Argument argument) const { call_(object_, static_cast<Argument>(argument)); }

 private:
  void* object_;
  void (*call_)(void*, Argument);
};

using TaskRef = FunctionRef<size_t>;

class Team;

// One of the threads that run a body together. All must make the same calls of Share and Barrier in the same order.
class Worker {
 public:
  // A single worker, whose tasks run on up to num_threads threads. Its body may call Python, and takes longer.
  explicit Worker(size_t num_threads) : num_threads_(num_threads) {}

  size_t id() const { return id_; }  // 0: the thread that called RunTeam
  size_t num() const { return num_; }

  // Calls task(0) ... task(num_tasks - 1), each once, on the workers. Each worker has a contiguous part, the same in each
  // call with as many tasks, and then helps others. Returns when no task is left to start.
  void Share(size_t num_tasks, TaskRef task);

  // The first task of this worker's part; with fewer tasks than workers, that of another one.
  size_t FirstTask(size_t num_tasks) const { return num_tasks * id_ / num_; }

  // Returns when all workers have come here. What they wrote before can be read after it.
  void Barrier();

 private:
  friend class Team;
  Worker(Team* team, size_t id, size_t num, uint32_t stage) : team_(team), id_(id), num_(num), stage_(stage) {}

  Team* team_ = nullptr;  // null for a single worker
  size_t id_ = 0, num_ = 1;
  uint32_t stage_ = 0;      // number of the next Share
  uint32_t phase_ = 0;      // number of the next Barrier
  size_t num_threads_ = 1;  // of a single worker
};

// Calls body(worker) on up to num_threads workers, the caller's thread included, and returns when all have returned; their
// number is lower if the system refuses threads. The first exception is rethrown here: the other workers leave at their
// next Share or Barrier. Calls from several threads run one after another; a call from inside a body runs on one worker.
// Bodies must not call Python. Threads are kept; those that are idle sleep, and end if they are not
// needed for a while.
void RunTeam(size_t num_threads, FunctionRef<Worker&> body);

// Calls task(0) ... task(num_tasks - 1) on up to num_threads workers. After an exception, tasks that have not started are
// dropped.
void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task);

// Number of processors that this process may use, at least 1.
size_t AvailableThreads();

}  // namespace lowbit
