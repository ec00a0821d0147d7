#!/usr/bin/env bash
# How fast a mapped file is read from the page cache depends on the calls that wrote it.
#
# The page cache of Linux keeps a file of ext4, XFS or btrfs in "folios" of the sizes in which it came there. Written 4 KiB
# at a time, it stays in pages of 4 KiB, which every later program maps one by one, until the file is dropped from memory.
# Written 2 MiB at a time, the same bytes are mapped by entries of 2 MiB. Read through a map, a file that is not in memory
# comes there in small pages for the most part, in large ones if the map has MADV_HUGEPAGE, although it is no anonymous
# memory and although "THPeligible" of the map is 0.
#
# Likely guess: a cached file is a cached file; huge pages are for anonymous memory, tmpfs and, with a kernel option,
# programs. So two programs that map the same file of weights should always read it at the same speed.
#
# Versions: Linux 6.18, ext4, CONFIG_READ_ONLY_THP_FOR_FS not set, transparent huge pages "madvise"; NumPy 2.4.6. Output
# (GB/s of one thread of an AMD EPYC with Zen 4; they are not checked):
#   written 4 KiB at a time: 0 % in large pages, 20.5 GB/s
#   written 2 MiB at a time: 100 % in large pages, 31.6 GB/s
#   dropped, read through a map: PERCENT % in large pages, RATE GB/s
#   dropped, read through a map with MADV_HUGEPAGE: 100 % in large pages, RATE GB/s
set -euo pipefail
folder=$(mktemp -d -p "${TMPDIR:-/var/tmp}")  # /tmp may be a tmpfs
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import mmap
import os
import sys
import time

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


def look(path, advise):
    """The part that is mapped by large entries after reading, and the speed of reading again."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if advise:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    numbers = np.frombuffer(mapped, np.uint64)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        numbers.max()
        seconds.append(time.perf_counter() - start)
    sizes, found = {}, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):
                found = words[-1] == path
            elif found and words[-1] == "kB":
                sizes[words[0]] = int(words[1])
    return sizes["FilePmdMapped:"] * 1024 / SIZE, SIZE / min(seconds) * 1e-9


os.chdir(os.path.dirname(os.path.abspath(__file__)))
shares = []
for text, piece, dropped, advise in (
    ("written 4 KiB at a time", 4 << 10, False, False),
    ("written 2 MiB at a time", 2 << 20, False, False),
    ("dropped, read through a map", 4 << 10, True, False),
    ("dropped, read through a map with MADV_HUGEPAGE", 4 << 10, True, True),
):
    path = os.path.abspath("weights")
    write(path, piece)
    if dropped:
        drop(path)
    share, rate = look(path, advise)
    os.unlink(path)
    print(f"{text}: {share:.0%} in large pages, {rate:.1f} GB/s".replace("%", " %"))
    shares.append(share)
small, large, read, advised = shares
sys.exit(not (small == 0 and large > 0.9 and read < 0.6 < 0.9 < advised))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
