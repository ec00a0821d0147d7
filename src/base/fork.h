// A mutex that stays safe in a forked child.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

namespace lowbit {

// A child has only the thread that forked. A mutex that another thread held stays locked forever, and its data may be
// incomplete. In this case lock() throws. A mutex that was free, or held by the forking thread, works as before.
class ForkMutex {
 public:
  // `what`: the guarded object, for messages: "the model".
  explicit ForkMutex(const char* what);
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  // Throws InputError in a child process if another thread held it at the fork.
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
