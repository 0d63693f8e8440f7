#!/bin/sh
# Brings uv into the folder $1 (as $1/bin/uv) on a machine that has none: with venv and pip where they are, with pip
# alone, or from PyPI's wheel, checked against its SHA-256. Installs python3 first where that is missing and allowed.
set -eu
target=$1
say() { echo "make: $*" >&2; }

if [ -x "$target/bin/uv" ]; then exit 0; fi
if ! command -v python3 >/dev/null; then
    root=""
    [ "$(id -u)" = 0 ] || root="sudo -n"
    command -v apt-get >/dev/null && $root true 2>/dev/null || {
        say "python3 is not installed. Remedy: sudo apt-get install -y python3 python3-venv"
        exit 1
    }
    say "installing python3 from the distribution"
    $root apt-get update -qq
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 ca-certificates >&2
fi
say "uv is not here: bringing it into $target"
rm -rf "$target"
mkdir -p "$(dirname "$target")"
if python3 -m venv "$target" >/dev/null 2>&1 && "$target/bin/python" -m pip install --quiet uv >&2; then exit 0; fi
rm -rf "$target"
if python3 -m pip --version >/dev/null 2>&1 && python3 -m pip install --quiet --target "$target" uv >&2; then exit 0; fi
rm -rf "$target"
python3 - "$target" <<'EOF'
"""Fetches uv's wheel from PyPI with the standard library alone."""

import hashlib
import io
import json
import pathlib
import platform
import sys
import urllib.parse
import urllib.request
import zipfile

target = pathlib.Path(sys.argv[1]) / "bin"
index = "https://pypi.org/pypi/uv/json"
with urllib.request.urlopen(index, timeout=60) as answer:
    files = json.load(answer)["urls"]
wanted = f"manylinux_2_17_{platform.machine()}"
wheel = next((file for file in files if wanted in file["filename"]), None)
if wheel is None:
    sys.exit(f"make: PyPI has no uv for {platform.machine()}. Remedy: install uv (https://docs.astral.sh/uv) yourself.")
with urllib.request.urlopen(urllib.parse.urljoin(index, wheel["url"]), timeout=300) as answer:
    content = answer.read()
if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
    sys.exit("make: uv's wheel does not have the checksum that PyPI states. Remedy: try again.")
target.mkdir(parents=True)
with zipfile.ZipFile(io.BytesIO(content)) as archive:
    for name in archive.namelist():
        if name.endswith((".data/scripts/uv", ".data/scripts/uvx")):
            program = target / pathlib.Path(name).name
            program.write_bytes(archive.read(name))
            program.chmod(0o755)
EOF
