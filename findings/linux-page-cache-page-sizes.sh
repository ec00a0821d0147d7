#!/usr/bin/env bash
# Whether a cached file is mapped in large pages depends on the calls that wrote it.
#
# The page cache of Linux keeps a file of ext4 or XFS in "folios" of the sizes in which it came there. Written 4 KiB at a
# time, it stays in pages of 4 KiB, which every later program maps one by one, until the file is dropped from memory.
# Written 2 MiB at a time, the same bytes are mapped by entries of 2 MiB, and read 1.1 to 1.3 times as fast. A file that
# is not in memory comes there in large pages if its map has MADV_HUGEPAGE, although it is no anonymous memory, and
# although "THPeligible" of the map is 0.
#
# Likely guess: a cached file is a cached file; huge pages are for anonymous memory, tmpfs and, with a kernel option,
# programs. So two programs that map the same weights should always read them at the same speed.
#
# Versions: Linux 6.18, ext4, CONFIG_READ_ONLY_THP_FOR_FS not set, transparent huge pages "madvise"; NumPy 2.4.6. Output:
#   written 4 KiB at a time: 0 % in large pages
#   written 2 MiB at a time: 100 % in large pages
#   written 4 KiB at a time, dropped, read through a map with MADV_HUGEPAGE: 100 % in large pages
set -euo pipefail
folder=$(mktemp -d -p "${TMPDIR:-/var/tmp}")  # /tmp may be a tmpfs
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import mmap
import os
import sys

import numpy as np

SIZE = 256 << 20


def write(path, piece):
    data = np.random.default_rng(0).bytes(piece)
    with open(path, "wb", buffering=0) as file:
        for _ in range(SIZE // piece):
            file.write(data)
        os.fsync(file.fileno())


def drop(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def large_share(path, advise):
    """The part that is mapped by large entries after reading."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if advise:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    np.frombuffer(mapped, np.uint64).max()
    sizes, found = {}, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):
                found = words[-1] == path
            elif found and words[-1] == "kB":
                sizes[words[0]] = int(words[1])
    return sizes["FilePmdMapped:"] * 1024 / SIZE


path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")
shares = []
for text, piece, dropped in (
    ("written 4 KiB at a time", 4 << 10, False),
    ("written 2 MiB at a time", 2 << 20, False),
    ("written 4 KiB at a time, dropped, read through a map with MADV_HUGEPAGE", 4 << 10, True),
):
    write(path, piece)
    if dropped:
        drop(path)
    shares.append(large_share(path, advise=dropped))
    os.unlink(path)
    print(f"{text}: {100 * shares[-1]:.0f} % in large pages")
small, large, advised = shares
sys.exit(not (small == 0 and large > 0.9 and advised > 0.9))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
