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
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "hwy/cache_control.h"

namespace lowbit {
namespace {

// How often a thread checks for what it waits for before it sleeps, about 50 us. Waking a sleeping thread takes tens of
// microseconds; a decoded token has about two hundred barriers, microseconds apart. After about 5 us it lets other threads
// have the processor between checks: those of another process, which perhaps hold up what it waits for.
constexpr int kSpins = 200, kYields = 100;

// Workers that were not needed in this many runs end.
constexpr size_t kWindow = 256;

// Leaves a body after another worker's exception.
struct Stopped {};

// Threads that wait for a condition on atomic variables: first they spin, then they sleep. Who makes it true calls Wake.
class Waiters {
 public:
  template <class Condition>
  void Wait(Condition condition) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (condition()) return;
      hwy::Pause();
    }
    for (int yields = 0; yields < kYields; ++yields) {
      if (condition()) return;
      std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    // Wake changes the same word after the condition: either it sees this thread, or this thread sees the condition.
    sleepers_.fetch_add(1, std::memory_order_acq_rel);
    wake_.wait(lock, condition);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  void Wake() {
    if (sleepers_.fetch_add(0, std::memory_order_acq_rel) == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<size_t> sleepers_{0};
};

thread_local bool t_in_body = false;

}  // namespace

// Never destroyed: the interpreter may still be inside a run at exit.
class Team {
 public:
  void Run(size_t num_threads, FunctionRef<Worker&> body) {
    std::lock_guard<std::mutex> turn(turn_);
    const size_t num_helpers = Provide(num_threads - 1);
    body_ = &body;
    error_ = nullptr;
    failed_.store(false, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(0, std::memory_order_relaxed);
    busy_.store(num_helpers, std::memory_order_relaxed);
    Announce(num_helpers);
    Worker worker(this, 0, num_helpers + 1, first_stage_);
    Call(worker);
    done_.Wait([&] { return busy_.load(std::memory_order_acquire) == 0; });
    first_stage_ = worker.stage_;
    if (failed_.load(std::memory_order_relaxed)) first_stage_ += 1u << 16;  // others may have come further
    if (error_) std::rethrow_exception(error_);
  }

  // Returns the number of a task of this stage that nobody has started, or num_tasks. A word of `next_` has a stage and the
  // number of tasks that were started of one worker's part. Whoever comes first to a part begins it: a thread that waits
  // for a processor does not hold up its part.
  size_t Claim(uint32_t stage, size_t part, size_t num_tasks) {
    std::atomic<uint64_t>& next = next_[part].value;
    uint64_t seen = next.load(std::memory_order_relaxed);
    for (;;) {
      const auto ahead = static_cast<int32_t>(static_cast<uint32_t>(seen >> 32) - stage);
      const uint64_t started = ahead < 0 ? 0 : seen & UINT32_MAX;
      if (ahead > 0 || started >= num_tasks) return num_tasks;
      const uint64_t wanted = (uint64_t{stage} << 32) | (started + 1);
      if (next.compare_exchange_weak(seen, wanted, std::memory_order_relaxed)) return started;
    }
  }

  void Barrier(uint32_t phase, size_t num) {
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      barrier_.Wake();
      return;
    }
    barrier_.Wait([&] { return phase_.load(std::memory_order_acquire) != phase || Failed(); });
    if (phase_.load(std::memory_order_acquire) == phase) throw Stopped();
  }

  bool Failed() const { return failed_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Next {
    std::atomic<uint64_t> value{0};
  };

  // A run's number and its number of helpers, in one word: a thread without a part in a run may already see the next run
  // when it reads the word.
  static constexpr int kHelperBits = 16;
  static size_t NumHelpers(uint64_t run) { return run & ((1 << kHelperBits) - 1); }

  // Returns the number of helpers for a run that wants `wanted`. It is lower if the system refuses threads; results do
  // not depend on it.
  size_t Provide(size_t wanted) {
    most_ = std::max(most_, wanted);
    if (++num_runs_ == kWindow) {
      if (most_ < threads_.size()) End(most_);
      most_ = wanted;
      num_runs_ = 0;
      refused_ = false;
    }
    if (threads_.size() < wanted && !refused_) {
      threads_.reserve(wanted);
      const uint64_t run = run_.load(std::memory_order_relaxed);
      try {
        while (threads_.size() < wanted) {
          threads_.emplace_back([this, index = threads_.size(), run] { Help(index, run); });
        }
      } catch (const std::system_error&) {
        refused_ = true;
      }
    }
    const size_t num = std::min(wanted, threads_.size());
    if (num_parts_ < num + 1) {
      next_ = std::make_unique<Next[]>(num + 1);
      num_parts_ = num + 1;
      for (size_t i = 0; i < num_parts_; ++i) next_[i].value = uint64_t{first_stage_ - 1} << 32;
    }
    return num;
  }

  // Ends all threads except the first `num`.
  void End(size_t num) {
    limit_.store(num, std::memory_order_relaxed);
    Announce(0);
    bench_.Wake();
    for (size_t i = num; i < threads_.size(); ++i) threads_[i].join();
    threads_.resize(num);
    limit_.store(SIZE_MAX, std::memory_order_relaxed);
  }

  void Announce(size_t num_helpers) {
    const uint64_t before = run_.load(std::memory_order_relaxed);
    run_.store(((before >> kHelperBits) + 1) << kHelperBits | num_helpers, std::memory_order_release);
    start_.Wake();
    if (num_helpers > NumHelpers(before)) bench_.Wake();
  }

  void Call(Worker& worker) {
    t_in_body = true;
    try {
      (*body_)(worker);
    } catch (const Stopped&) {
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      failed_.store(true, std::memory_order_seq_cst);
      barrier_.Wake();
    }
    t_in_body = false;
  }

  // `seen`: the last run before the thread was created. Bodies do not call Python, so no thread is ended inside one.
  void Help(size_t index, uint64_t seen) {
    for (;;) {
      uint64_t run = seen;
      // Threads without a part in the last run wait at bench_, so runs without them do not wake them.
      Waiters& place = index >= NumHelpers(seen) ? bench_ : start_;
      place.Wait([&] { return (run = run_.load(std::memory_order_acquire)) != seen; });
      seen = run;
      if (index >= limit_.load(std::memory_order_relaxed)) return;
      if (index >= NumHelpers(run)) continue;
      Worker worker(this, index + 1, NumHelpers(run) + 1, first_stage_);
      Call(worker);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.Wake();
    }
  }

  std::mutex turn_;  // held for the length of one run
  Waiters start_, bench_, barrier_, done_;
  std::atomic<uint64_t> run_{0};
  std::atomic<size_t> busy_{0};          // helpers that have not finished the current run
  std::atomic<size_t> limit_{SIZE_MAX};  // threads from this one on end
  const FunctionRef<Worker&>* body_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  std::atomic<size_t> arrived_{0};  // at the current barrier
  std::atomic<uint32_t> phase_{0};  // barriers that all have passed
  uint32_t first_stage_ = 1;        // of the current run
  std::unique_ptr<Next[]> next_;    // of each worker's part
  size_t num_parts_ = 0;
  std::vector<std::thread> threads_;
  size_t num_runs_ = 0;   // of the current window
  size_t most_ = 0;       // most helpers that one run wanted
  bool refused_ = false;  // the system refused a thread
};

namespace {

Team* g_team = new Team;

#if !defined(_WIN32)
// A forked child has only the forking thread, so it starts with a new team. The parent's is not freed.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  g_team = new Team;
  t_in_body = false;
});
#endif

}  // namespace

void Worker::Share(size_t num_tasks, TaskRef task) {
  if (team_ == nullptr) return ParallelFor(num_tasks, num_threads_, task);
  const uint32_t stage = stage_++;
  for (size_t i = 0; i < num_; ++i) {
    const size_t part = (id_ + i) % num_;
    const size_t first = num_tasks * part / num_, size = num_tasks * (part + 1) / num_ - first;
    for (;;) {
      if (team_->Failed()) throw Stopped();
      const size_t started = team_->Claim(stage, part, size);
      if (started == size) break;
      task(first + started);
    }
  }
}

void Worker::Barrier() {
  if (team_) team_->Barrier(phase_++, num_);
}

void RunTeam(size_t num_threads, FunctionRef<Worker&> body) {
  if (num_threads > 1 && !t_in_body) return g_team->Run(num_threads, body);
  Worker alone(1);
  body(alone);
}

void ParallelFor(size_t num_tasks, size_t num_threads, TaskRef task) {
  if (num_tasks <= 1 || num_threads <= 1 || t_in_body) {
    for (size_t i = 0; i < num_tasks; ++i) task(i);
    return;
  }
  g_team->Run(std::min(num_tasks, num_threads), [&](Worker& worker) { worker.Share(num_tasks, task); });
}

size_t AvailableThreads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace lowbit
