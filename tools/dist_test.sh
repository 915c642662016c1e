#!/usr/bin/env bash
# Evaluate on several GPUs of this machine; options as for tools/test.py.
#
#     tools/dist_test.sh configs/detection/cascade_convnext_t.py epoch_36.pth 8
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
DIST_TOOL=test exec "$(dirname "$0")/dist_train.sh" "$@"
