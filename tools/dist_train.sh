#!/usr/bin/env bash
# Train on several GPUs of this machine; options as for tools/train.py.
#
#     tools/dist_train.sh configs/detection/cascade_convnext_t.py 8 --data-root /data/coco
#
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT on each.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
tool=${DIST_TOOL:-train}
case $tool in train) fixed=1 ;; test) fixed=2 ;; esac
files=("${@:1:fixed}")
processes=${*:fixed+1:1}
[[ $processes =~ ^[1-9][0-9]*$ ]] || { echo "error: the number of processes must be a positive integer, got '$processes'" >&2; exit 1; }
case " $* " in
*" --device cpu "*) ;;
*)  # one line here, instead of one from each process
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    [ "$processes" -le "$gpus" ] || {
        echo "error: $processes GPUs asked for, this machine has $gpus: start fewer processes, or add --device cpu" >&2
        exit 1
    } ;;
esac
exec python -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    --nproc_per_node "$processes" \
    "$(dirname "$0")/$tool.py" "${files[@]}" --launcher pytorch "${@:fixed+2}"
