#include "src/base/fork.h"

#include <new>

#include "src/base/error.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace lowbit {

// All mutexes, for the child's side of a fork. The list's own mutex is held only for a few instructions, so the fork
// waits for it.
struct ForkMutexes {
  static std::mutex mutex;
  static ForkMutex* first;

  static void Prepare() { mutex.lock(); }
  static void InParent() { mutex.unlock(); }
  static void InChild() {
    for (ForkMutex* m = first; m != nullptr; m = m->next_) {
      if (m->IsMine()) continue;
      m->lost_ |= m->owner_.load() != std::thread::id();
      m->owner_ = std::thread::id();
      new (&m->mutex_) std::mutex;  // the old one may be locked, or have waiting threads that do not exist in the child
    }
    mutex.unlock();
  }
};

std::mutex ForkMutexes::mutex;
ForkMutex* ForkMutexes::first = nullptr;

namespace {

#if !defined(_WIN32)
[[maybe_unused]] const int registered =
    pthread_atfork(ForkMutexes::Prepare, ForkMutexes::InParent, ForkMutexes::InChild);
#endif

}  // namespace

ForkMutex::ForkMutex(const char* what) : what_(what) {
  const std::lock_guard<std::mutex> lock(ForkMutexes::mutex);
  next_ = ForkMutexes::first;
  if (next_ != nullptr) next_->previous_ = this;
  ForkMutexes::first = this;
}

ForkMutex::~ForkMutex() {
  const std::lock_guard<std::mutex> lock(ForkMutexes::mutex);
  (previous_ != nullptr ? previous_->next_ : ForkMutexes::first) = next_;
  if (next_ != nullptr) next_->previous_ = previous_;
}

void ForkMutex::lock() {
  if (lost_) {
    throw InputError(Str("this process was forked while another thread used ", what_,
                         ": create it again in this process, or fork while no thread uses it"));
  }
  mutex_.lock();
  owner_ = std::this_thread::get_id();
}

void ForkMutex::unlock() {
  owner_ = std::thread::id();
  mutex_.unlock();
}

}  // namespace lowbit
