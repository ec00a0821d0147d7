// Files that are written completely or not at all.
#pragma once

#include <cstdint>
#include <string>

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

  // Empty after Commit or Abort.
  const std::string& temporary_path() const { return temp_path_; }

  // Writes directly from the caller's memory, without a buffer: pass large pieces.
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
  uint64_t process_;  // the process that created it
  intptr_t handle_ = -1;
};

}  // namespace lowbit
