#!/usr/bin/env bash
# An Ellipsis that stands for no axis still changes the shape of a NumPy result.
#
# Integer arrays in an index put their axes where they stand, if they are next to each other, and first in the result
# if something is between them. `...` counts as between even where no axis is left for it, and an integer counts as an
# array where there is one. So t[:, 0, i] and t[:, 0, ..., i] of an array with three axes are transposes of each other.
#
# Likely guess: `...` is short for as many `:` as there are axes left, so for none of them it does nothing.
#
# Versions: numpy 2.4.6. An array of shape (2, 3, 4), an index of 7 integers. Output:
#   t[:, i, i]: (2, 7)
#   t[:, i, ..., i]: (7, 2)
#   t[:, 0, i]: (2, 7)
#   t[:, 0, ..., i]: (7, 2)
#   t[:, i, i, ...]: (2, 7)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import sys

import numpy as np

t = np.arange(24).reshape(2, 3, 4)
i = np.array([0, 1, 2, 0, 1, 2, 0])
results = {
    "t[:, i, i]": t[:, i, i],
    "t[:, i, ..., i]": t[:, i, ..., i],
    "t[:, 0, i]": t[:, 0, i],
    "t[:, 0, ..., i]": t[:, 0, ..., i],
    "t[:, i, i, ...]": t[:, i, i, ...],
}
seen = [f"{index}: {result.shape}" for index, result in results.items()]

print("\n".join(seen))
sys.exit(
    seen
    != [
        "t[:, i, i]: (2, 7)",
        "t[:, i, ..., i]: (7, 2)",
        "t[:, 0, i]: (2, 7)",
        "t[:, 0, ..., i]: (7, 2)",
        "t[:, i, i, ...]: (2, 7)",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
