#include "src/base/threads.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"

namespace lowbit {
namespace {

// How often a thread checks for the next loop before it sleeps. A decoded token takes about two hundred short loops,
// microseconds apart. Waking a sleeping thread takes tens of microseconds. 2000 checks are about 50 us of pauses.
constexpr int kSpins = 2000;

// Workers that were not needed in this many loops end.
constexpr size_t kWindow = 256;

// Workers take part in loops that need enough threads; the others sleep. Never destroyed: the interpreter may still be
// inside a loop at exit.
class Pool {
 public:
  void Run(size_t num_tasks, size_t num_threads, TaskRef task) {
    std::lock_guard<std::mutex> turn(turn_);
    const size_t num_workers = Provide(num_threads - 1);
    task_ = &task;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(num_workers, std::memory_order_relaxed);
    error_ = nullptr;
    Announce(num_workers);
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
  // A loop's number and its number of workers, in one word: a worker without a part in a loop may already see the next
  // loop when it reads the word.
  static constexpr int kWorkerBits = 16;
  static size_t NumWorkers(uint64_t loop) { return loop & ((1 << kWorkerBits) - 1); }

  // Returns the number of workers for a loop that wants `wanted`. It is lower if the system refuses threads; results do
  // not depend on it.
  size_t Provide(size_t wanted) {
    most_ = std::max(most_, wanted);
    if (++num_loops_ == kWindow) {
      if (most_ < workers_.size()) End(most_);
      most_ = wanted;
      num_loops_ = 0;
      refused_ = false;
    }
    if (workers_.size() < wanted && !refused_) {
      workers_.reserve(wanted);
      const uint64_t loop = loop_.load(std::memory_order_relaxed);
      try {
        while (workers_.size() < wanted) {
          workers_.emplace_back([this, index = workers_.size(), loop] { Work(index, loop); });
        }
      } catch (const std::system_error&) {
        refused_ = true;
      }
    }
    return std::min(wanted, workers_.size());
  }

  // Ends all workers except the first `num`.
  void End(size_t num) {
    limit_.store(num, std::memory_order_relaxed);
    Announce(0);
    bench_.notify_all();
    for (size_t i = num; i < workers_.size(); ++i) workers_[i].join();
    workers_.resize(num);
    limit_.store(SIZE_MAX, std::memory_order_relaxed);
  }

  void Announce(size_t num_workers) {
    bool more;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const uint64_t before = loop_.load(std::memory_order_relaxed);
      more = num_workers > NumWorkers(before);
      loop_.store(((before >> kWorkerBits) + 1) << kWorkerBits | num_workers, std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) != 0) wake_.notify_all();
    if (more) bench_.notify_all();
  }

  // Tasks do not call Python, so no thread is ended inside a task.
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

  // `seen`: the last loop before the worker was created.
  void Work(size_t index, uint64_t seen) {
    for (;;) {
      const uint64_t loop = Wait(index, seen);
      seen = loop;
      if (index >= limit_.load(std::memory_order_relaxed)) return;
      if (index >= NumWorkers(loop)) continue;
      DoTasks();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Returns the first loop after `seen` that the worker notices: at the latest the next one that includes it.
  uint64_t Wait(size_t index, uint64_t seen) {
    const bool benched = index >= NumWorkers(seen);
    uint64_t loop = loop_.load(std::memory_order_acquire);
    for (int spins = 0; !benched && spins < kSpins && loop == seen; ++spins) {
      hwy::Pause();
      loop = loop_.load(std::memory_order_acquire);
    }
    if (loop != seen) return loop;
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_new = [&] { return (loop = loop_.load(std::memory_order_acquire)) != seen; };
    if (benched) {
      bench_.wait(lock, is_new);
      return loop;
    }
    sleepers_.fetch_add(1, std::memory_order_release);
    wake_.wait(lock, is_new);
    sleepers_.fetch_sub(1, std::memory_order_release);
    return loop;
  }

  std::mutex turn_;   // held for the length of one loop
  std::mutex mutex_;  // guards sleeping and error_
  // Workers without a part in the last loop wait at bench_, so loops without them do not wake them.
  std::condition_variable wake_, bench_;
  std::atomic<uint64_t> loop_{0};
  std::atomic<size_t> sleepers_{0};  // at wake_
  std::atomic<size_t> next_{0};
  std::atomic<size_t> busy_{0};          // workers that have not finished the current loop
  std::atomic<size_t> limit_{SIZE_MAX};  // workers from this one on end
  const TaskRef* task_ = nullptr;
  size_t num_tasks_ = 0;
  std::exception_ptr error_;
  std::vector<std::thread> workers_;
  size_t num_loops_ = 0;  // of the current window
  size_t most_ = 0;       // most workers that one loop wanted
  bool refused_ = false;  // the system refused a thread
};

Pool* g_pool = new Pool;

#if !defined(_WIN32)
// A forked child has only the forking thread, so it starts with a new pool. The parent's pool is not freed.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool = new Pool; });
#endif

}  // namespace

void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task) {
  if (num_threads <= 1 || num_tasks <= 1) {
    for (size_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
  g_pool->Run(num_tasks, num_threads, task);
}

size_t AvailableThreads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace lowbit
