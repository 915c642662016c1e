#!/usr/bin/env bash
# Make the virtual environment that `make demo`, `make test` and `make lint` run in.
#
#     tools/setup.sh VENV
#
# Installs what requirements.lock names, once: a second call with the same lock file returns at once. Nothing
# is compiled, so no gcc, g++ or nvcc is needed; most of the time is the download of torch.
#
# PYTHON=python3.12   the interpreter to start from; default: the first of python3.11, 3.12, 3.13, python3
# LOCK=FILE           another list of versions than requirements.lock
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:?usage: tools/setup.sh VENV}
lock=${LOCK:-requirements.lock}
stamp=$venv/.installed
wanted=$(cat "$lock" tools/setup.sh | sha256sum | cut -c1-16)
log=$venv/install.log
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
pin() { grep -iE "^$1==" "$lock"; }

install_self() { # the package itself, editable, so that it is importable from anywhere
    [ "$(cat "$venv/.checkout" 2>/dev/null)" = "$PWD" ] && return
    "${pip[@]}" install -q --no-deps --no-build-isolation -e . >>"$log" 2>&1 ||
        fail "installing convnext_backbone itself failed, see $log"
    echo "$PWD" >"$venv/.checkout"
}

watched() { # run a command into the log; meanwhile say every 30 s how long it has taken
    local what=$1 start=$SECONDS said=$SECONDS pid
    shift
    "$@" >>"$log" 2>&1 &
    pid=$!
    trap 'kill "${pid:-}" 2>/dev/null; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        [ $((SECONDS - said)) -ge 30 ] || continue
        said=$SECONDS
        say "$what $((SECONDS - start)) s"
    done
    wait "$pid" || { tail -n 15 "$log" >&2; fail "$what failed, the whole output is in $log"; }
    say "$what done in $((SECONDS - start)) s"
}

[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && { install_self; exit 0; }

for python in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    command -v "$python" >/dev/null && "$python" -c 'import sys' 2>/dev/null && break
    python=
done
[ -n "$python" ] || fail "no ${PYTHON:-Python 3.11, 3.12 or 3.13} here: install one, or name it with PYTHON=..."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$("$python" --version) ($python) is outside the range 3.11 to 3.13: name another with PYTHON=..."

say "environment in $venv with $("$python" --version) (once; log in $log)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
rm -f "$stamp" "$venv/.checkout"
: >"$log"
# torch brings the CUDA libraries that fit it; the rest is taken as the lock file has it, since mmcv-lite asks for
# another distribution of mmengine than ours.
watched "torch:" "${pip[@]}" install "$(pin torch)" "$(pin torchvision)" "$(pin numpy)" "$(pin setuptools)" "$(pin wheel)"
watched "everything else:" "${pip[@]}" install --no-deps --no-build-isolation -r "$lock"

# On a machine without libGL only the headless build of OpenCV can be imported.
"$venv/bin/python" -c 'import cv2' 2>>"$log" ||
    watched "headless OpenCV:" "${pip[@]}" install --no-deps --force-reinstall "$(pin opencv-python-headless)"

install_self
# yapf, which prints configs, keeps its grammar in a file that two processes must not write at once.
"$venv/bin/python" -c 'from yapf.yapflib.yapf_api import FormatCode; FormatCode("a = 1")' >>"$log" 2>&1
echo "$wanted" >"$stamp"
say "ready: $("$venv/bin/python" -c 'import torch, mmcv, mmengine; print("torch", torch.__version__, "mmcv", mmcv.__version__, "mmengine", mmengine.__version__)')"
