#!/usr/bin/env bash
# Make the virtual environment that `make demo`, `make test` and `make lint` run in.
#
#     tools/setup.sh VENV
#
# Installs what requirements.lock names, once: a second call with the same lock file returns at once.
# onedl-mmcv is compiled from source (8 to 15 minutes on 2 cores); pip keeps the wheel, so the next
# environment on this machine takes it from there.
#
# PYTHON=python3.11   the interpreter to start from
# FORCE_CUDA=1        compile mmcv's operators for CUDA too (needs nvcc and a GPU build of torch)
# PIP_FIND_LINKS=URL  a folder or page of ready wheels, where onedl-mmcv is taken from if it is there
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: tools/setup.sh VENV}
python=${PYTHON:-python3.11}
lock=requirements.lock
stamp=$venv/.installed
wanted=$(cat "$lock" tools/setup.sh | sha256sum | cut -c1-16)${FORCE_CUDA:+-cuda}
log=$venv/install.log

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
pin() { grep -iE "^$1==" "$lock"; }

install_self() { # the package itself, editable, so that it is importable from anywhere
    [ "$(cat "$venv/.checkout" 2>/dev/null)" = "$PWD" ] && return
    "${pip[@]}" install -q --no-deps --no-build-isolation -e . >>"$log" 2>&1 ||
        fail "installing convnext_backbone itself failed, see $log"
    echo "$PWD" >"$venv/.checkout"
}

watched() { # run a command into the log; meanwhile say every 30 s how far it has come
    local what=$1 start=$SECONDS said=$SECONDS pid step
    shift
    "$@" >>"$log" 2>&1 &
    pid=$!
    trap 'kill "${pid:-}" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        [ $((SECONDS - said)) -ge 30 ] || continue
        said=$SECONDS
        step=$(tail -c 20000 "$log" | grep -oE '^ *\[[0-9]+/[0-9]+\]' | tail -n 1 | tr -d ' ' || true)
        say "$what ${step:+file $step, }$((SECONDS - start)) s"
    done
    wait "$pid" || { tail -n 15 "$log" >&2; fail "$what failed, the whole output is in $log"; }
    say "$what done in $((SECONDS - start)) s"
}

pip=("$venv/bin/python" -m pip --disable-pip-version-check)

have=$(cat "$stamp" 2>/dev/null || true)
[ "$have" = "$wanted" ] || [ "$have" = "$wanted-cuda" ] && { install_self; exit 0; }

command -v "$python" >/dev/null || fail "no $python here: install Python 3.11, or name another with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11"
for tool in gcc g++; do command -v $tool >/dev/null || fail "no $tool here: mmcv's operators are compiled with it"; done

say "environment in $venv (once; log in $log)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
rm -f "$stamp" "$venv/.checkout"
: >"$log"
watched "torch and build tools:" "${pip[@]}" install -c "$lock" setuptools wheel \
    "$(pin ninja)" "$(pin psutil)" "$(pin numpy)" "$(pin torch)" "$(pin torchvision)"

# Its build needs the torch of this environment, hence no isolation; -g0 halves the time.
export CFLAGS="${CFLAGS:-} -g0" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" PATH="$PWD/$venv/bin:$venv/bin:$PATH"
build_mmcv=("${pip[@]}" install -v --no-build-isolation -c "$lock" "$(pin onedl-mmcv)")
mmcv_works() {
    "$venv/bin/python" - >>"$log" 2>&1 <<'PY'
import os
from mmcv.ops import get_compiling_cuda_version, roi_align
if os.environ.get('FORCE_CUDA') == '1' and get_compiling_cuda_version() == 'not available':
    raise SystemExit('mmcv was compiled without CUDA')
PY
}
watched "onedl-mmcv (compiled from source unless pip has the wheel):" "${build_mmcv[@]}"

watched "everything else:" "${pip[@]}" install --no-build-isolation -r "$lock"

# On a machine without libGL only the headless build of OpenCV can be imported.
"$venv/bin/python" -c 'import cv2' 2>>"$log" ||
    watched "headless OpenCV:" "${pip[@]}" install --no-deps --force-reinstall "$(pin opencv-python-headless)"

# A wheel that pip kept may have been compiled against another torch, or without CUDA.
mmcv_works || {
    say "the mmcv wheel at hand does not fit this torch: compiling a new one"
    watched "onedl-mmcv:" "${build_mmcv[@]}" --no-cache-dir --no-deps --force-reinstall --no-binary onedl-mmcv
    mmcv_works || { tail -n 5 "$log" >&2; fail "mmcv.ops cannot be imported, see $log"; }
}
install_self
# yapf, which prints configs, keeps its grammar in a file that two processes must not write at once.
"$venv/bin/python" -c 'from yapf.yapflib.yapf_api import FormatCode; FormatCode("a = 1")' >>"$log" 2>&1
echo "$wanted" >"$stamp"
say "ready: $("$venv/bin/python" -c 'import torch, mmcv, mmengine; print("torch", torch.__version__, "mmcv", mmcv.__version__, "mmengine", mmengine.__version__)')"
