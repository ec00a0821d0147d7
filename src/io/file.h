// Files that are written completely or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lowbit {

// Writes a file under a temporary name (".NAME.PID-N.tmp") in the target's folder. Commit renames it to the final name.
// If the process is killed at any moment, the final name still has its previous content. A symbolic link is followed to
// its target. A replaced file keeps its permissions. Temporary files of the same target whose writer died are removed.
// Every failure is a FileError that names the path.
//
// A child that is forked meanwhile inherits a writer that it cannot use: the file belongs to its parent. Write and
// Commit throw InputError there, and the temporary file stays.
class AtomicWriter {
 public:
  explicit AtomicWriter(const std::string& path);
  ~AtomicWriter() { Abort(); }
  AtomicWriter(const AtomicWriter&) = delete;
  AtomicWriter& operator=(const AtomicWriter&) = delete;

  // Empty after Commit or Abort. The file has all that was written up to this call.
  const std::string& TemporaryPath();

  // The system gets pieces of 2 MiB at multiples of 2 MiB. Linux then keeps the file in large pages, and products of a model
  // that was just written read its weights up to 1.3 times as fast (docs/performance.md). A full disk may be noticed by a
  // later Write or by Commit.
  void Write(const void* data, uint64_t num_bytes);

  // Waits until the data is on the disk, then renames.
  void Commit();

  // Removes the temporary file. Has no effect after Commit or Abort.
  void Abort() noexcept;

  // Whether this process is a fork of the process that created the writer.
  bool IsInherited() const;

  // Throws InputError if IsInherited().
  void CheckOwner() const;

 private:
  std::string path_;    // as given by the caller, for messages
  std::string target_;  // with links resolved
  std::string temp_path_;
  void WriteBuffer();
  void WriteOut(const char* data, uint64_t num_bytes);

  uint64_t process_;  // the process that created it
  intptr_t handle_ = -1;
  uint64_t num_written_ = 0;  // by WriteOut
  std::vector<char> buffer_;  // what follows
};

}  // namespace lowbit
