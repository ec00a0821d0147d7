// The thread pool under ThreadSanitizer: many callers, changing numbers of threads, exceptions, forks.
#include "src/base/threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

void Expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

// Every task runs once. What tasks write without a lock, the caller reads when the loop is done.
void Loop(size_t num_tasks, size_t num_threads) {
  std::vector<size_t> results(num_tasks, 0);
  lowbit::ParallelFor(num_tasks, num_threads, [&](size_t task) { results[task] += task + 1; });
  for (size_t task = 0; task < num_tasks; ++task) Expect(results[task] == task + 1, "each task has run once");
}

void TestNumbersOfThreads() {
  for (const size_t num_threads : {1, 2, 8, 3, 16, 2, 1, 5}) {
    for (const size_t num_tasks : {0, 1, 2, 7, 100}) Loop(num_tasks, num_threads);
  }
}

void TestManyCallers() {
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < 6; ++caller) {
    callers.emplace_back([caller] {
      for (size_t i = 0; i < 40; ++i) Loop(20 + i, 1 + (caller + i) % 5);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void TestExceptions() {
  for (size_t i = 0; i < 50; ++i) {
    std::atomic<size_t> started{0};
    bool caught = false;
    try {
      lowbit::ParallelFor(1000, 4, [&](size_t task) {
        started.fetch_add(1, std::memory_order_relaxed);
        if (task % 3 == 2) throw std::runtime_error("on purpose");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    Expect(caught, "an exception of a task reaches the caller");
    Expect(started.load() < 1000, "tasks that had not started are dropped");
    Loop(30, 4);
  }
}

// A body with stages: what workers wrote before a barrier, all can read after it.
void TestStages() {
  for (const size_t num_threads : {1, 2, 3, 8}) {
    std::vector<size_t> values(40, 1), sums(40, 0);
    lowbit::RunTeam(num_threads, [&](lowbit::Worker& worker) {
      Expect(worker.id() < worker.num(), "workers have numbers");
      for (size_t stage = 0; stage < 100; ++stage) {
        worker.Share(values.size(), [&](size_t task) {
          sums[task] = 0;
          for (const size_t value : values) sums[task] += value;
        });
        worker.Barrier();
        worker.Share(values.size(), [&](size_t task) { values[task] = sums[task] % 1009 + task; });
        worker.Barrier();
      }
    });
    static const std::vector<size_t> expected = values;
    Expect(values == expected, "any number of workers computes the same");
  }
}

// One worker's exception ends the others, wherever they wait.
void TestExceptionsInStages() {
  for (size_t i = 0; i < 50; ++i) {
    bool caught = false;
    try {
      lowbit::RunTeam(4, [&](lowbit::Worker& worker) {
        for (size_t stage = 0; stage < 20; ++stage) {
          if (stage == i % 20 && worker.id() == i % worker.num()) throw std::runtime_error("on purpose");
          if (stage % 2 == 0) worker.Share(16, [](size_t) {});
          worker.Barrier();
        }
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    Expect(caught, "an exception of a body reaches the caller");
    Loop(30, 4);
  }
}

// A loop inside a body runs on the worker that calls it.
void TestNestedLoops() {
  std::vector<size_t> results(64, 0);
  lowbit::ParallelFor(
      8, 4, [&](size_t outer) { lowbit::ParallelFor(8, 4, [&](size_t inner) { results[8 * outer + inner] += 1; }); });
  for (const size_t result : results) Expect(result == 1, "each inner task has run once");
}

// A child that was forked between loops computes. One that was forked during a loop computes or refuses, and ends.
void TestForks() {
  const auto child_ends_well = [] {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      int status = 0;
      try {
        Loop(50, 4);
      } catch (const std::exception&) {
        status = 1;
      }
      _exit(status);
    }
    int status = 0;
    Expect(child > 0 && waitpid(child, &status, 0) == child, "there is a child");
    Expect(WIFEXITED(status), "the child is not left waiting");
    return WEXITSTATUS(status) == 0;
  };
  Loop(50, 4);
  Expect(child_ends_well(), "a child forked between loops computes");
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop.load()) Loop(50, 4);
  });
  for (size_t i = 0; i < 20; ++i) child_ends_well();
  stop.store(true);
  busy.join();
  Loop(50, 4);
}

}  // namespace

int main() {
  TestNumbersOfThreads();
  TestManyCallers();
  TestExceptions();
  TestStages();
  TestExceptionsInStages();
  TestNestedLoops();
  TestForks();
  std::puts("the thread pool's tests passed");
  return 0;
}
