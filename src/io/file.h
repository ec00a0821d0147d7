// Files written whole or not at all.
#pragma once

#include <cstdint>
#include <string>

namespace lowbit {

// Writes a file under a temporary name (".NAME.PID-N.tmp") in the target's folder; Commit gives it the final name, so
// that a process killed at any moment leaves under that name what was there before. A symbolic link is followed to the
// file it names, and who may do what with a file that is replaced stays as it was. Temporary files of the same target
// whose writer died are removed. Every failure is a FileError naming the path.
//
// A child forked meanwhile inherits a writer that it cannot use: the file is its parent's. Write and Commit throw
// InputError there, and the temporary file stays.
class AtomicWriter {
 public:
  explicit AtomicWriter(const std::string& path);
  ~AtomicWriter() { Abort(); }
  AtomicWriter(const AtomicWriter&) = delete;
  AtomicWriter& operator=(const AtomicWriter&) = delete;

  // Empty once committed or aborted.
  const std::string& temporary_path() const { return temp_path_; }

  // Straight from the caller's memory to the operating system, without a buffer between: pass large pieces.
  void Write(const void* data, uint64_t num_bytes);

  // Waits until the data is on the disk, then renames.
  void Commit();

  // Removes the temporary file; nothing happens after Commit or a second time.
  void Abort() noexcept;

  // Whether this process is a fork of the one that made the writer.
  bool IsInherited() const;

  // Throws InputError if it is.
  void CheckOwner() const;

 private:
  std::string path_;    // for messages: as the caller gave it
  std::string target_;  // where links led
  std::string temp_path_;
  uint64_t process_;  // that made it
  intptr_t handle_ = -1;
};

}  // namespace lowbit
