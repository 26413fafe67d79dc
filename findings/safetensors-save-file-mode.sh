#!/usr/bin/env bash
# safetensors 0.8.0: who may read what save_file wrote, and what is left of the file that was there.
#
# One would guess that a new file gets the permissions that the umask leaves, as from open(), and that writing over a
# file keeps its permissions and follows a link, as from open(..., "wb"). save_file gives every file to its owner alone,
# whatever the umask; over a file that all could read, too; and a symbolic link is replaced by a file, while what it pointed
# to stays as it was. On a shared disk colleagues then cannot load a model that diffusers or transformers saved, and a
# folder of links (the layout of the hub's cache) loses them one by one.
#
# Seen with umask 022: mode 600 of a new file and of one that had 664, 644 by writing the bytes of save() oneself; the link
# gone, its target with the old tensor. Exit status 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check 'safetensors==0.8.0' 'numpy==2.4.6'
cd "$folder"
umask 022
venv/bin/python - <<'PY'
import os
import stat
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file


def mode(name):
    return oct(stat.S_IMODE(os.stat(name).st_mode))


one, two = {"a": np.zeros(2, np.float32)}, {"a": np.ones(2, np.float32)}
save_file(one, "new")
Path("bytes").write_bytes(save(one))
Path("shared").write_bytes(save(one))
os.chmod("shared", 0o664)
save_file(two, "shared")
Path("target").write_bytes(save(one))
os.symlink("target", "link")
save_file(two, "link")
seen = {
    "new": mode("new"),
    "bytes of save()": mode("bytes"),
    "over one with 0o664": mode("shared"),
    "still a link": os.path.islink("link"),
    "in the link's target": load_file("target")["a"].tolist(),
}
print(seen)
sys.exit(list(seen.values()) != ["0o600", "0o644", "0o600", False, [0.0, 0.0]])
PY
