#include "src/io/mapped_file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>

#include "src/base/error.h"
#include "src/io/system.h"

#ifdef _WIN32
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace lowbit {

// A map as seen by the signal handler. Regions are never freed, only reused, so the list can be walked at any time
// without a lock.
struct MappedFile::Region {
  std::atomic<bool> taken{true};
  std::atomic<uintptr_t> begin{0};  // 0: there is no map
  std::atomic<uintptr_t> end{0};
  std::atomic<const MappedFile*> file{nullptr};
  std::atomic<size_t> num_users{0};  // calls that will check `lost`
  std::atomic<bool> lost{false};     // some bytes of the map were replaced by zeros
  Region* next = nullptr;

  static std::atomic<Region*> first;

  // Returns an empty region, which belongs to the caller.
  static Region* Take() {
    for (Region* r = first; r != nullptr; r = r->next) {
      bool taken = false;
      if (r->taken.compare_exchange_strong(taken, true)) return r;
    }
    Region* added = new Region;
    added->next = first;
    while (!first.compare_exchange_weak(added->next, added)) {
    }
    return added;
  }

  void Fill(const MappedFile* owner) {
    lost = false;
    file = owner;
    end = reinterpret_cast<uintptr_t>(owner->data()) + static_cast<uintptr_t>(owner->size());
    begin = reinterpret_cast<uintptr_t>(owner->data());
  }

  void GiveBack() {
    begin = 0;
    taken = false;
  }

  // The region around the address, or null.
  static Region* At(uintptr_t address) {
    for (Region* r = first; r != nullptr; r = r->next) {
      const uintptr_t begin = r->begin;
      if (begin != 0 && begin <= address && address < r->end && r->begin == begin) return r;
    }
    return nullptr;
  }
};

std::atomic<MappedFile::Region*> MappedFile::Region::first{nullptr};

void MappedFile::FailShorter(uint64_t size) const {
  const std::string left = size < size_ ? Str(", to ", size, " of its ", size_, " bytes") : "";
  throw FileError(
      Str("the file became shorter while it was used", left, ": replace files by rename, and open this one again"))
      .Path(path_);
}

#ifdef _WIN32

namespace {

HANDLE AsHandle(intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::Open(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile(path));
  const std::wstring wide = ToPath(path).wstring();
  const DWORD attributes = GetFileAttributesW(wide.c_str());
  if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY)) {
    throw FileError("cannot open:").Path(path).ErrnoValue(EISDIR).Expected("a regular file").Found("a directory");
  }
  const HANDLE handle = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                                    nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle == INVALID_HANDLE_VALUE) FailSystem("open", path);
  file->handle_ = reinterpret_cast<intptr_t>(handle);
  file->Map();
  return file;
}

std::shared_ptr<const MappedFile> MappedFile::OfDescriptor(int descriptor, const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile(path));
  HANDLE handle = nullptr;
  const HANDLE process = GetCurrentProcess();
  if (!DuplicateHandle(process, AsHandle(_get_osfhandle(descriptor)), process, &handle, 0, FALSE,
                       DUPLICATE_SAME_ACCESS)) {
    FailSystem("open", path);
  }
  file->handle_ = reinterpret_cast<intptr_t>(handle);
  file->Map();
  return file;
}

void MappedFile::Map() {
  LARGE_INTEGER size;
  if (!GetFileSizeEx(AsHandle(handle_), &size)) FailSystem("map", path_);
  size_ = static_cast<uint64_t>(size.QuadPart);
  if (size_ == 0) return;
  const HANDLE mapping = CreateFileMappingW(AsHandle(handle_), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) FailSystem("map", path_);
  data_ = static_cast<const uint8_t*>(MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0));
  const int error = LastError();
  CloseHandle(mapping);  // the view keeps the mapping alive
  if (data_ == nullptr) FailSystem("map", path_, error);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) UnmapViewOfFile(data_);
  if (handle_ != -1) CloseHandle(AsHandle(handle_));
}

void MappedFile::Read(uint64_t offset, void* out, size_t num_bytes) const {
  if (offset > size_ || num_bytes > size_ - offset) FailShorter(size_);
  std::memcpy(out, data_ + offset, num_bytes);
}

void MappedFile::Release(const void* /*memory*/, size_t /*num_bytes*/) {}

void MappedFile::Check() const {}

MapsInUse::~MapsInUse() = default;

#else

// The handler of SIGBUS. Lost bytes of a map in use become zeros up to the end of the map, and the call continues to
// its check. All other faults go to the previous handler: a fault elsewhere, or in a map that no lowbit call is reading
// (NumPy's read of a view must not continue with unnoticed zeros). Handlers that are installed later run first, and end
// the process.
//
// A server is inside a call almost all the time. Checking the file's size before each call would not be enough there.
class BusErrors {
 public:
  static void Catch() {
    if (installed_.exchange(true)) return;
    struct sigaction action = {};
    action.sa_sigaction = &Handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_);
  }

 private:
  static void Handle(int number, siginfo_t* info, void* context) {
    const int saved = errno;
    const bool replaced =
        info->si_code == BUS_ADRERR && MapsInUse::ReplaceLost(reinterpret_cast<uintptr_t>(info->si_addr));
    errno = saved;
    if (!replaced) CallPrevious(number, info, context);
  }

  static void CallPrevious(int number, siginfo_t* info, void* context) {
    if (previous_.sa_flags & SA_SIGINFO) {
      previous_.sa_sigaction(number, info, context);
    } else if (previous_.sa_handler == SIG_IGN && info->si_code <= 0) {  // sent by a process, not a fault
    } else if (previous_.sa_handler == SIG_DFL || previous_.sa_handler == SIG_IGN) {
      signal(number, SIG_DFL);
      raise(number);  // ends the process when this handler returns
    } else {
      previous_.sa_handler(number);
    }
  }

  static std::atomic<bool> installed_;
  static struct sigaction previous_;
};

std::atomic<bool> BusErrors::installed_{false};
struct sigaction BusErrors::previous_;

bool MapsInUse::ReplaceLost(uintptr_t address) {
  MappedFile::Region* region = MappedFile::Region::At(address);
  if (region == nullptr || region->num_users == 0) return false;
  region->lost = true;  // before any thread can read the zeros
  const uintptr_t page = address & ~(static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)) - 1);
  return mmap(reinterpret_cast<void*>(page), region->end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
              0) != MAP_FAILED;
}

std::shared_ptr<const MappedFile> MappedFile::Open(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile(path));
  // Opening a pipe would block without O_NONBLOCK.
  file->handle_ = open(ToPath(path).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file->handle_ < 0) FailSystem("open", path);
  file->Map();
  return file;
}

std::shared_ptr<const MappedFile> MappedFile::OfDescriptor(int descriptor, const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile(path));
  file->handle_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (file->handle_ < 0) FailSystem("open", path);
  file->Map();
  return file;
}

void MappedFile::Map() {
  struct stat status = {};
  if (fstat(static_cast<int>(handle_), &status) != 0) FailSystem("open", path_);
  if (!S_ISREG(status.st_mode)) {
    const bool is_folder = S_ISDIR(status.st_mode);
    throw FileError("cannot open:")
        .Path(path_)
        .ErrnoValue(is_folder ? EISDIR : EINVAL)
        .Expected("a regular file")
        .Found(is_folder ? "a directory" : "a device or pipe");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ > std::numeric_limits<size_t>::max()) {
    throw FileError(Str("cannot map: ", size_, " bytes exceed the address space")).Path(path_).ErrnoValue(EFBIG);
  }
  if (size_ == 0) return;
  BusErrors::Catch();
  region_ = Region::Take();
  void* data = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, static_cast<int>(handle_), 0);
  if (data == MAP_FAILED) FailSystem("map", path_);
#ifdef MADV_HUGEPAGE
  madvise(data, static_cast<size_t>(size_), MADV_HUGEPAGE);  // what is not in memory yet is read in large pages
#endif
  data_ = static_cast<const uint8_t*>(data);
  region_->Fill(this);
}

MappedFile::~MappedFile() {
  if (region_ != nullptr) region_->GiveBack();
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  if (handle_ >= 0) close(static_cast<int>(handle_));
}

void MappedFile::Read(uint64_t offset, void* out, size_t num_bytes) const {
  for (auto* rest = static_cast<char*>(out); num_bytes > 0;) {
    const ssize_t num = pread(static_cast<int>(handle_), rest, num_bytes, static_cast<off_t>(offset));
    if (num < 0 && errno == EINTR) continue;
    if (num < 0) FailSystem("read", path_);
    if (num == 0) FailShorter(offset);
    rest += num;
    offset += static_cast<uint64_t>(num);
    num_bytes -= static_cast<size_t>(num);
  }
}

void MappedFile::Release(const void* memory, size_t num_bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const Region* region = Region::At(begin);
  if (region == nullptr) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = std::min<uintptr_t>(begin + num_bytes, region->end) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

void MappedFile::Check() const {
  struct stat status = {};
  if (fstat(static_cast<int>(handle_), &status) != 0) FailSystem("read", path_);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size < size_ || (region_ != nullptr && region_->lost)) FailShorter(size);
}

MapsInUse::~MapsInUse() {
  for (const MappedFile* file : files_) --file->region_->num_users;
}

#endif

bool MapsInUse::Add(const void* memory) {
  const MappedFile::Region* region = MappedFile::Region::At(reinterpret_cast<uintptr_t>(memory));
  if (region == nullptr) return false;
  const MappedFile* file = region->file;
  if (std::find(files_.begin(), files_.end(), file) != files_.end()) return false;
  file->Check();
  files_.push_back(file);
  ++file->region_->num_users;
  return true;
}

void MapsInUse::Check() const {
  for (const MappedFile* file : files_) file->Check();
}

}  // namespace lowbit
