#!/usr/bin/env bash
# Builds ggml 0.25.3's libggml-base, which test_ggml_oracle.py compares with: get_ggml.sh DIR, about a minute.
#     LOWBIT_GGML=DIR/libggml-base.so pytest tests/oracle/test_ggml_oracle.py
# The sources are those that the source distribution of llama-cpp-python carries; `unearth` (pip install unearth) fetches
# it. Compiled for the baseline CPU and without fused multiply-add, as the reference is defined.
set -euo pipefail
dir=$(mkdir -p "${1:?usage: get_ggml.sh DIR}" && cd "$1" && pwd)
cd "$dir"
unearth "llama-cpp-python==0.3.36" --no-binary --download "$dir" >/dev/null
tar -xzf llama_cpp_python-0.3.36.tar.gz llama_cpp_python-0.3.36/vendor/llama.cpp/ggml
ggml=llama_cpp_python-0.3.36/vendor/llama.cpp/ggml
printf '#define GGML_VERSION "0.25.3"\n#define GGML_COMMIT ""\n' >"$ggml/src/ggml-version.h"
flags=(-O2 -fPIC -w -DNDEBUG -ffp-contract=off -D_GNU_SOURCE -DGGML_BUILD -DGGML_SCHED_MAX_COPIES=4
  "-I$ggml/include" "-I$ggml/src")
for source in ggml.c ggml-alloc.c ggml-quants.c; do
  "${CC:-cc}" -std=gnu11 "${flags[@]}" -c "$ggml/src/$source" -o "$source.o"
done
for source in ggml.cpp ggml-backend.cpp ggml-backend-meta.cpp ggml-opt.cpp ggml-threading.cpp gguf.cpp; do
  "${CXX:-c++}" -std=c++17 "${flags[@]}" -c "$ggml/src/$source" -o "$source.o"
done
"${CXX:-c++}" -shared -o libggml-base.so ./*.o -lm -lpthread -ldl
rm -r ./*.o llama_cpp_python-0.3.36*
