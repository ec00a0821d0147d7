// A mutex for what a forked child inherits.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

namespace lowbit {

// A child has one of its parent's threads, the one that forked: what another held then stays locked, and half done, for
// ever. There, lock() throws. A mutex that nobody held, or the thread that forked, goes on working.
class ForkMutex {
 public:
  // `what` it guards, for messages: "the model".
  explicit ForkMutex(const char* what);
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  // Throws InputError in a child of a process where another thread held it.
  void lock();
  void unlock();

  // Whether this thread holds it.
  bool IsMine() const { return owner_ == std::this_thread::get_id(); }

 private:
  friend struct ForkMutexes;

  const char* what_;
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
  bool lost_ = false;
  ForkMutex* previous_ = nullptr;  // in the list of all
  ForkMutex* next_ = nullptr;
};

}  // namespace lowbit
