// Files mapped for reading, and what becomes of a call that reads a map whose file was cut short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lowbit {

// A regular file mapped read-only. Paths as in src/io/system.h.
//
// Replacing the file by rename, as AtomicWriter does, is safe. Somebody may also cut it short, or write it anew in
// place, as cp and wget do. Bytes that are lost then end the process with SIGBUS when they are touched, except in a
// call that says which maps it reads (MapsInUse): that raises FileError.
class MappedFile {
 public:
  // Throws FileError or InputError that names the path.
  static std::shared_ptr<const MappedFile> Open(const std::string& path);

  // The file of an open descriptor, which stays the caller's.
  static std::shared_ptr<const MappedFile> OfDescriptor(int descriptor, const std::string& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Copies bytes from the file, not from the map: of one cut short it raises FileError.
  void Read(uint64_t offset, void* out, size_t num_bytes) const;

  // Throws FileError if bytes of the map are known to be lost.
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
  Region* region_ = nullptr;  // null if the file is empty, and on Windows, which cuts no mapped file short
};

// The maps that a call reads. Where one loses bytes meanwhile, zeros are read in their place and Check throws.
class MapsInUse {
 public:
  MapsInUse() = default;
  ~MapsInUse();
  MapsInUse(const MapsInUse&) = delete;
  MapsInUse& operator=(const MapsInUse&) = delete;

  // The map that `memory` lies in, if it lies in one, which must outlive this object. Returns whether that is a map,
  // and new here. Throws FileError if the file is shorter than the map already.
  bool Add(const void* memory);

  // To be called when all is read. Throws FileError.
  void Check() const;

 private:
  friend class BusErrors;
  // Puts zeros in the place of lost bytes, from the address's page to the map's end; false if no call uses the map.
  static bool ReplaceLost(uintptr_t address);

  std::vector<const MappedFile*> files_;
};

}  // namespace lowbit
