#!/usr/bin/env bash
# Compile mmcv's operators for the torch at hand, to compare ours with them (tools/dev/compare_mmcv_ops.py).
#
#     tools/dev/compile_mmcv.sh FOLDER
#
# Puts the package into FOLDER, outside the environment, which stays as it is; 10 to 15 minutes on 2 cores,
# once for each version of torch.
#
# PYTHON=python   of the environment: has torch, setuptools, wheel, packaging and, to be faster, ninja
# FORCE_CUDA=1    compile for CUDA too (needs nvcc and a GPU build of torch)
set -euo pipefail

folder=${1:?usage: tools/dev/compile_mmcv.sh FOLDER}
version=2.3.6

say() { printf '[compile] %s\n' "$*"; }
fail() { printf '[compile] error: %s\n' "$*" >&2; exit 1; }

python=$(command -v "${PYTHON:-python}") || fail "no ${PYTHON:-python} here: name a Python with torch by PYTHON=..."
command -v g++ >/dev/null || fail "no g++ here: mmcv's operators are compiled with it"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # the build runs in another folder
torch=$("$python" -c 'import torch; print(torch.__version__)') || fail "$python has no torch"

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
stamp=$folder/.compiled log=$folder/compile.log source=$folder/source
wanted="onedl-mmcv $version, torch $torch${FORCE_CUDA:+, cuda $FORCE_CUDA}"
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && { say "is there: $wanted"; exit 0; }
rm -rf "$stamp" "$source" "$folder/mmcv"

say "$wanted (log in $log)"
pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" download --no-binary :all: --no-deps --no-build-isolation --dest "$source" \
    "onedl-mmcv==$version" >"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "the download failed, see $log"; }
tar -xzf "$source/onedl_mmcv-$version.tar.gz" -C "$source"

# It asks for C++17; the headers of torch 2.14 are written in C++20. -g0 halves the time.
sed -i 's/c++17/c++20/g' "$source/onedl_mmcv-$version/setup.py"
export CFLAGS="${CFLAGS:-} -g0" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}"
export PATH="$(dirname "$python"):$PATH" # where ninja lies
started=$SECONDS
"${pip[@]}" install -v --no-deps --no-build-isolation --upgrade --target "$folder" \
    "$source/onedl_mmcv-$version" >>"$log" 2>&1 || { tail -n 15 "$log" >&2; fail "compiling failed, see $log"; }
compgen -G "$folder/mmcv/_ext*.so" >/dev/null || fail "no $folder/mmcv/_ext*.so came out, see $log"
rm -rf "$source"
echo "$wanted" >"$stamp"
say "done in $((SECONDS - started)) s"
