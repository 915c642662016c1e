#!/usr/bin/env bash
# Train on several GPUs, of one machine or of several; options as for tools/train.py.
#
#     tools/dist_train.sh configs/detection/cascade_convnext_t.py 8 --data-root /data/coco
#
# Several machines: the same line on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set. Or, for
# torchrun to find them and to start again what died (the training then resumes by itself):
#     ... 8 --nnodes 2 --max-restarts 3         a fixed number of machines
#     ... 8 --nnodes 1:4 --max-restarts 3       as many as come, within these bounds
# with MASTER_ADDR of one of them set on each, NODE_RANK 0 there and another number elsewhere. LOCAL_ADDR: under
# which address the others find this machine, if not by its name. --rdzv-id NAME keeps jobs apart.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
fail() { echo "error: $*" >&2; exit 1; }
tool=${DIST_TOOL:-train}
case $tool in train) fixed=1 ;; test) fixed=2 ;; esac
files=("${@:1:fixed}")
processes=${*:fixed+1:1}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "the number of processes must be a positive integer, got '$processes'"
shift $((fixed + 1))

nnodes='' restarts=0 id=none options=()
while [ $# -gt 0 ]; do
    case $1 in
    --nnodes | --max-restarts | --rdzv-id) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
    --nnodes) nnodes=$2 && shift 2 ;;
    --max-restarts) restarts=$2 && shift 2 ;;
    --rdzv-id) id=$2 && shift 2 ;;
    *) options+=("$1") && shift ;;
    esac
done
[[ $restarts =~ ^[0-9]+$ ]] || fail "--max-restarts is a number of restarts, got '$restarts'"
[[ -z $nnodes || $nnodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] ||
    fail "--nnodes is a number of machines, or the smallest and largest as in 1:4, got '$nnodes'"

case " ${options[*]} " in
*" --device cpu "*) ;;
*)  # one line here, instead of one from each process
    gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
    [ "$processes" -le "$gpus" ] ||
        fail "$processes GPUs asked for, this machine has $gpus: start fewer processes, or add --device cpu" ;;
esac
address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-29500}
if [ -n "$nnodes" ] || [ "$restarts" -gt 0 ]; then
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else a restarted process meets the addresses of dead ones
    meeting=(--nnodes "${nnodes:-${NNODES:-1}}" --rdzv_backend c10d --rdzv_endpoint "$address:$port" --rdzv_id "$id")
    # which machine is MASTER_ADDR, and under which address the others find this one, if names do not say it
    [ -z "${NODE_RANK:-}" ] || meeting+=(--rdzv_conf "is_host=$((NODE_RANK == 0))")
    [ -z "${LOCAL_ADDR:-}" ] || meeting+=(--local_addr "$LOCAL_ADDR")
else
    meeting=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --master_addr "$address" --master_port "$port")
fi
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
exec python -m torch.distributed.run "${meeting[@]}" --nproc_per_node "$processes" --max_restarts "$restarts" \
    "$(dirname "$0")/$tool.py" "${files[@]}" --launcher pytorch "${options[@]}"
