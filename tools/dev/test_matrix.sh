#!/usr/bin/env bash
# Run a short set of tests in every environment that users may have, and print a table. `make test-matrix` calls it.
#
#     tools/dev/test_matrix.sh FOLDER [NAME ...]
#
# Python 3.11, 3.12 and 3.13 with the torch of requirements.lock, each with the maintained and with the original
# OpenMMLab packages; then, on Python 3.11, the oldest and the newest torch. FOLDER keeps the environments (about
# 6 GB each). NAME: only these rows, e.g. 3.12 or oldest. Nothing is compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:?usage: tools/dev/test_matrix.sh FOLDER [NAME ...]}")
shift
wanted=("${@:-3.11 3.12 3.13 oldest newest}")
mkdir -p "$folder"

maintained=(onedl-mmengine==0.10.12 mmcv-lite==2.2.0 onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2)
original=(mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 mmsegmentation==1.2.2)
pin() { grep -iE "^$1==" requirements.lock; }

environment() { # NAME PYTHON TORCH...: a virtual environment, and beside it a folder for each of the distributions
    local venv=$folder/$1 python=$2 pip
    shift 2
    pip=("$venv/bin/python" -m pip -q --disable-pip-version-check)
    [ -f "$venv/.installed" ] && return
    "$python" -m venv "$venv"
    "${pip[@]}" install "$@" "$(pin numpy)" "$(pin setuptools)" "$(pin wheel)"
    grep -vE '^(onedl-mm|mmcv-lite|torch==|torchvision==|setuptools|wheel)' requirements.lock >"$venv/rest.txt"
    "${pip[@]}" install --no-deps -r "$venv/rest.txt"
    "$venv/bin/python" -c 'import cv2' 2>/dev/null ||
        "${pip[@]}" install --no-deps --force-reinstall "$(pin opencv-python-headless)"
    "${pip[@]}" install --no-deps --no-build-isolation --target "$venv/maintained" "${maintained[@]}"
    "${pip[@]}" install --no-deps --no-build-isolation --target "$venv/original" "${original[@]}"
    touch "$venv/.installed"
}

rows=()
check() { # NAME DISTRIBUTION
    local venv=$folder/$1 log=$folder/$1-$2.log python start=$SECONDS
    python=$venv/bin/python
    export PYTHONPATH=$PWD:$venv/$2
    OMP_NUM_THREADS=1 "$python" -m pytest -m matrix -q -n 2 --dist loadgroup -p no:cacheprovider >"$log" 2>&1 || true
    rows+=("| $("$python" -c 'import platform, torch, torchvision
print(platform.python_version(), "|", torch.__version__, "|", torchvision.__version__)') | $2 | $(
        tail -n 1 "$log" | tr -d =
    ) | $((SECONDS - start)) s |")
    unset PYTHONPATH
    printf '%s\n' "${rows[-1]}"
}

for name in ${wanted[*]}; do
    python=python3.11
    case $name in
    oldest) torch=(torch==2.6.0 torchvision==0.21.0) ;;
    newest) torch=(torch torchvision) ;;
    *) python=python$name torch=("$(pin torch)" "$(pin torchvision)") ;;
    esac
    environment "$name" "$python" "${torch[@]}"
    for distribution in maintained original; do check "$name" $distribution; done
done
printf '\n| Python | torch | torchvision | OpenMMLab packages | tests | time |\n|---|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
! printf '%s\n' "${rows[@]}" | grep -qE 'failed|error'
