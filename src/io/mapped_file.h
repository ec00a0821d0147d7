// Files mapped for reading, and calls that read a map of a truncated file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lowbit {

// A regular file mapped read-only. Paths as in src/io/system.h.
//
// Replacing the file by rename, as AtomicWriter does, is safe. Another program may also truncate it, or overwrite it in
// place, as cp and wget do. Touching lost bytes then ends the process with SIGBUS, except in a call that registers the
// maps it reads (MapsInUse): this call raises FileError.
class MappedFile {
 public:
  // Throws FileError or InputError that names the path.
  static std::shared_ptr<const MappedFile> Open(const std::string& path);

  // Maps the file of an open descriptor. The caller keeps the descriptor.
  static std::shared_ptr<const MappedFile> OfDescriptor(int descriptor, const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Copies bytes from the file, not from the map. Throws FileError if the file was truncated.
  void Read(uint64_t offset, void* out, size_t num_bytes) const;

  // Takes the pages inside [memory, memory + num_bytes) out of the process's memory, if they belong to a map. They are
  // read from the file again when they are needed.
  static void Release(const void* memory, size_t num_bytes);

  // Throws FileError if some bytes of the map are known to be lost.
  void Check() const;

 private:
  friend class MapsInUse;
  struct Region;

  explicit MappedFile(const std::string& path) : path_(path) {}
  void Map();
  [[noreturn]] void FailShorter(uint64_t size) const;

  std::string path_;
  intptr_t handle_ = -1;
  const uint8_t* data_ = nullptr;  // null if the file is empty
  uint64_t size_ = 0;
  Region* region_ = nullptr;  // null if the file is empty, and on Windows: it protects mapped files from truncation
};

// The maps that a call reads. If one loses bytes meanwhile, zeros are read instead and Check throws.
class MapsInUse {
 public:
  MapsInUse() = default;
  ~MapsInUse();
  MapsInUse(const MapsInUse&) = delete;
  MapsInUse& operator=(const MapsInUse&) = delete;

  // Adds the map that contains `memory`. It must outlive this object. Returns false if there is no map, or if it was
  // added before. Throws FileError if the file is already shorter than the map.
  bool Add(const void* memory);

  // Call it after all reads. Throws FileError.
  void Check() const;

 private:
  friend class BusErrors;
  // Replaces lost bytes by zeros, from the address's page to the end of the map. Returns false if no call uses the map.
  static bool ReplaceLost(uintptr_t address);

  std::vector<const MappedFile*> files_;
};

}  // namespace lowbit
