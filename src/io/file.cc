#include "src/io/file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "src/base/error.h"
#include "src/io/system.h"

#ifdef _WIN32
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace lowbit {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPiece = uint64_t{2} << 20;       // a large page of x86-64, and of ARM with pages of 4 KiB
constexpr uint64_t kMostAtOnce = uint64_t{1} << 30;  // systems refuse or shorten writes of 2 GiB and more

// System calls with one signature on every platform. A handle is -1 if opening failed.
#ifdef _WIN32

HANDLE AsHandle(intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

// Other processes may neither write nor remove the file while it is open. This distinguishes a live writer's file from
// a stale one.
intptr_t OpenTemporary(const std::string& path) {
  return reinterpret_cast<intptr_t>(CreateFileW(ToPath(path).c_str(), GENERIC_WRITE, FILE_SHARE_READ, nullptr,
                                                CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr));
}

bool NameIsTaken(int error) { return error == ERROR_FILE_EXISTS || error == ERROR_ALREADY_EXISTS; }

void KeepMode(intptr_t, const std::string&) {}  // files inherit the folder's permissions

int64_t WriteSome(intptr_t handle, const void* data, size_t num_bytes) {
  DWORD written = 0;
  if (!WriteFile(AsHandle(handle), data, static_cast<DWORD>(num_bytes), &written, nullptr)) return -1;
  return written;
}

bool Sync(intptr_t handle) { return FlushFileBuffers(AsHandle(handle)); }
bool Close(intptr_t handle) { return CloseHandle(AsHandle(handle)); }
void Remove(const std::string& path) { DeleteFileW(ToPath(path).c_str()); }
void RemoveIfStale(const std::string& path) { Remove(path); }

bool Rename(const std::string& from, const std::string& to) {
  return MoveFileExW(ToPath(from).c_str(), ToPath(to).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);
}

uint64_t ProcessId() { return GetCurrentProcessId(); }

#else

// A live writer holds a lock on its file. The system releases the lock when the process ends, in any way. If another
// process removed the file as stale between the two calls, the result is -1 with EEXIST.
intptr_t OpenTemporary(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return -1;
  const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;  // file systems without locks proceed
  struct stat status;
  if (locked && fstat(fd, &status) == 0 && status.st_nlink > 0) return fd;
  close(fd);
  errno = EEXIST;
  return -1;
}

bool NameIsTaken(int error) { return error == EEXIST; }

// Copies the mode of the file that will be replaced, if it exists and the file system has modes.
void KeepMode(intptr_t handle, const std::string& target) {
  struct stat status = {};
  if (stat(target.c_str(), &status) == 0) (void)!fchmod(static_cast<int>(handle), status.st_mode & 07777);
}

int64_t WriteSome(intptr_t handle, const void* data, size_t num_bytes) {
  ssize_t written;
  do {
    written = write(static_cast<int>(handle), data, num_bytes);
  } while (written < 0 && errno == EINTR);
  return written;
}

bool Sync(intptr_t handle) {
  // EINVAL: the file system cannot synchronise.
  return fsync(static_cast<int>(handle)) == 0 || errno == EINVAL;
}

bool Close(intptr_t handle) { return close(static_cast<int>(handle)) == 0; }
void Remove(const std::string& path) { unlink(path.c_str()); }

void RemoveIfStale(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(path.c_str());
  close(fd);
}

// The rename must reach the disk too, which requires syncing the folder. Some file systems cannot do that: best effort.
bool Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return false;
  const std::string folder = fs::path(to).parent_path().string();
  const int fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    fsync(fd);
    close(fd);
  }
  return true;
}

uint64_t ProcessId() { return static_cast<uint64_t>(getpid()); }

#endif

// The target of a write to `path`. Only a regular file may be replaced: renaming over a device would destroy it.
std::string ResolveTarget(const std::string& path) {
  constexpr int kMaxLinks = 40;  // Linux follows as many
  std::error_code error;
  fs::path target = ToPath(path);
  for (int i = 0; i < kMaxLinks && fs::is_symlink(target, error); ++i) {
    target = target.parent_path() / fs::read_symlink(target, error);
    if (error) FailSystem("write", path, error.value());
  }
  const fs::file_status status = fs::status(target, error);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    const bool is_folder = fs::is_directory(status);
    throw FileError("cannot write:")
        .Path(path)
        .ErrnoValue(is_folder ? EISDIR : EINVAL)
        .Expected("a regular file")
        .Found(is_folder ? "a directory" : "a device or pipe");
  }
  return ToString(target);
}

bool IsTemporaryOf(const std::string& name, const std::string& prefix) {
  constexpr std::string_view kSuffix = ".tmp";
  if (name.size() <= prefix.size() + kSuffix.size() || name.compare(0, prefix.size(), prefix) != 0) return false;
  const size_t suffix_begin = name.size() - kSuffix.size();
  return name.compare(suffix_begin, kSuffix.size(), kSuffix) == 0 &&
         name.find_first_not_of("0123456789-", prefix.size()) == suffix_begin;
}

void RemoveStaleTemporaries(const fs::path& folder, const std::string& prefix) {
  std::error_code error;
  const fs::directory_iterator end;
  for (fs::directory_iterator it(folder.empty() ? fs::path(".") : folder, error); !error && it != end;
       it.increment(error)) {
    if (IsTemporaryOf(ToString(it->path().filename()), prefix)) RemoveIfStale(ToString(it->path()));
  }
}

}  // namespace

AtomicWriter::AtomicWriter(const std::string& path) : path_(path), target_(ResolveTarget(path)), process_(ProcessId()) {
  constexpr int kMostNames = 1000;  // processes with the same number in other containers may have taken some
  static std::atomic<uint64_t> num_writers{0};
  const fs::path target = ToPath(target_);
  const std::string prefix = "." + ToString(target.filename()) + ".";
  RemoveStaleTemporaries(target.parent_path(), prefix);
  for (int i = 0; i < kMostNames && handle_ == -1; ++i) {
    temp_path_ = ToString(target.parent_path() / ToPath(Str(prefix, process_, "-", num_writers++, ".tmp")));
    handle_ = OpenTemporary(temp_path_);
    if (handle_ == -1 && !NameIsTaken(LastError())) break;
  }
  if (handle_ == -1) {
    temp_path_.clear();
    FailSystem("write", path_);
  }
  KeepMode(handle_, target_);
}

bool AtomicWriter::IsInherited() const { return process_ != ProcessId(); }

void AtomicWriter::CheckOwner() const {
  if (!IsInherited()) return;
  throw InputError("cannot write: this process is a fork of the writer's process, and only that one can write")
      .Path(path_);
}

void AtomicWriter::Write(const void* data, uint64_t num_bytes) {
  CheckOwner();
  const char* rest = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const uint64_t room = kPiece - (num_written_ + buffer_.size()) % kPiece;
    uint64_t piece = std::min(num_bytes, room);
    if (room == kPiece && num_bytes >= kPiece) {
      piece = num_bytes / kPiece * kPiece;
      WriteOut(rest, piece);
    } else {
      buffer_.insert(buffer_.end(), rest, rest + piece);
      if (piece == room) WriteBuffer();
    }
    rest += piece;
    num_bytes -= piece;
  }
}

const std::string& AtomicWriter::TemporaryPath() {
  if (!IsInherited()) WriteBuffer();
  return temp_path_;
}

void AtomicWriter::WriteBuffer() {
  WriteOut(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void AtomicWriter::WriteOut(const char* data, uint64_t num_bytes) {
  while (num_bytes > 0) {
    const int64_t written = WriteSome(handle_, data, static_cast<size_t>(std::min(num_bytes, kMostAtOnce)));
    if (written <= 0) FailSystem("write", path_);
    data += written;
    num_bytes -= static_cast<uint64_t>(written);
    num_written_ += static_cast<uint64_t>(written);
  }
}

void AtomicWriter::Commit() {
  CheckOwner();
  WriteBuffer();
  if (!Sync(handle_)) FailSystem("write", path_);
  // Windows renames only closed files. The file is complete from here on, so another writer may remove it as stale by
  // mistake. The rename follows at once, and a failure is reported.
  const intptr_t handle = handle_;
  handle_ = -1;
#ifdef _WIN32
  const bool done = Close(handle) && Rename(temp_path_, target_);
#else
  const bool renamed = Rename(temp_path_, target_);
  const int error = errno;
  const bool done = Close(handle) && renamed;
  if (!renamed) errno = error;
#endif
  if (!done) FailSystem("write", path_);
  temp_path_.clear();
}

void AtomicWriter::Abort() noexcept {
  if (handle_ != -1) Close(handle_);
  handle_ = -1;
  buffer_.clear();
  if (!temp_path_.empty() && !IsInherited()) Remove(temp_path_);
  temp_path_.clear();
}

}  // namespace lowbit
