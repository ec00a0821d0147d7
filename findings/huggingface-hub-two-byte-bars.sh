#!/usr/bin/env bash
# A `tqdm_class` that adds up the bytes of its bars counts each byte of a `snapshot_download` twice.
#
# The client makes two bars in bytes of the class: one for bytes received, one for bytes written. Both are there for a
# download over plain HTTP too, where the two are the same bytes, and each has the total of all files. The third bar
# counts files. Version 1.20.0 had one bar in bytes. The bars differ only in their texts and in `bar_format`.
#
# Likely guess: one bar counts files and one counts bytes, so bars with `unit="B"` add up to the size of the download.
#
# Versions: huggingface_hub 2.4.0 and 1.20.0, tqdm 4.70.1, against a server on this machine. Two files, 100,003 bytes.
# Output:
#   1.20.0: bars in B [100003], others [2], sum of bytes 100003
#   2.4.0: bars in B [100003, 100003], others [2], sum of bytes 200006
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"config.json": b"{}\n", "model.safetensors": bytes(100_000)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def oid(content):
    return hashlib.sha1(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        headers = {"X-Repo-Commit": COMMIT}
        if "/resolve/" in self.path:
            body = FILES[self.path.rpartition("/")[2]]
            headers["ETag"] = f'"{oid(body)}"'
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in FILES.items()]
            body = json.dumps(tree).encode()
        else:
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1], "NO_PROXY": "127.0.0.1"}

from huggingface_hub import __version__, snapshot_download  # reads the environment
from tqdm.auto import tqdm

bars = []


class Bar(tqdm):
    def __init__(self, *arguments, **options):
        options.pop("name", None)
        super().__init__(*arguments, **options, file=open(os.devnull, "w"))
        bars.append(self)


snapshot_download("org/name", tqdm_class=Bar)
counts = [bar.n for bar in bars if bar.unit == "B"]
others = [bar.n for bar in bars if bar.unit != "B"]
print(f"{__version__}: bars in B {counts}, others {others}, sum of bytes {sum(counts)}")
PYTHON
for version in 1.20.0 2.4.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==$version tqdm==4.70.1
  "$folder/$version/bin/python" "$folder/show.py" "$folder/cache-$version" | tee -a "$folder/seen"
done
diff "$folder/seen" - <<'TEXT'
1.20.0: bars in B [100003], others [2], sum of bytes 100003
2.4.0: bars in B [100003, 100003], others [2], sum of bytes 200006
TEXT
