#include "src/threads.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"

namespace lowbit {
namespace {

// How often a thread looks for the next loop before it sleeps. A decoded token is some two hundred short loops with
// microseconds between them; waking a sleeping thread costs tens of microseconds. About 50 us of pauses.
constexpr int kSpins = 2000;

class Pool {
 public:
  // Fewer threads where the system refuses more: results do not depend on their number.
  explicit Pool(size_t num_threads) {
    workers_.reserve(num_threads);
    try {
      for (size_t i = 1; i < num_threads; ++i) workers_.emplace_back([this] { Work(); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void Run(size_t num_tasks, TaskRef task) {
    std::lock_guard<std::mutex> turn(turn_);
    task_ = &task;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(workers_.size(), std::memory_order_relaxed);
    error_ = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) != 0) wake_.notify_all();
    DoTasks();
    for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kSpins) {
        hwy::Pause();
      } else {
        std::this_thread::yield();
      }
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void DoTasks() {
    for (;;) {
      const size_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks_) return;
      try {
        (*task_)(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_.store(num_tasks_, std::memory_order_relaxed);
      }
    }
  }

  void Work() {
    for (size_t seen = 0;;) {
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) hwy::Pause();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_release);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_release);
      }
      ++seen;
      if (stop_) return;
      DoTasks();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_;   // held for the length of one loop
  std::mutex mutex_;  // guards sleeping, stop_ and error_
  std::condition_variable wake_;
  std::atomic<size_t> epoch_{0};  // counts loops; a worker runs each exactly once
  std::atomic<size_t> sleepers_{0};
  std::atomic<size_t> next_{0};
  std::atomic<size_t> busy_{0};  // workers that have not finished the current loop
  const TaskRef* task_ = nullptr;
  size_t num_tasks_ = 0;
  std::exception_ptr error_;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

struct Pools {
  std::mutex mutex;
  std::map<size_t, std::unique_ptr<Pool>> by_size;
};

// Never destroyed: at exit the interpreter may still be inside a loop. A forked child has no threads but its own, so it
// starts with new pools; the parent's are left where they are.
Pools* g_pools = new Pools;

Pool& GetPool(size_t num_threads) {
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pools = new Pools; });
  (void)registered;
#endif
  std::lock_guard<std::mutex> lock(g_pools->mutex);
  std::unique_ptr<Pool>& pool = g_pools->by_size[num_threads];
  if (!pool) pool = std::make_unique<Pool>(num_threads);
  return *pool;
}

}  // namespace

void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task) {
  if (num_threads <= 1 || num_tasks <= 1) {
    for (size_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
  GetPool(num_threads).Run(num_tasks, task);
}

size_t AvailableThreads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace lowbit
