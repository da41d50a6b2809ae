#!/bin/bash
# Trains on several machines without a scheduler. Start it on each of them, here on the first of two:
# NODES=2 NODE=0 HOST=10.0.0.1 examples/cluster/torchrun.sh --config configs/cifar10.yaml
# HOST is the address of the first machine. The others have NODE=1, NODE=2 … and the same HOST. The folder must be the
# same on all machines, for example on a network drive.
set -euo pipefail

# The number of devices and nodes needs no option. A training that was interrupted resumes when it is started again with
# the same --rdzv-id and the same options; for another training change ID.
"${PYTHON:-python}" -m torch.distributed.run --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" \
  --nproc-per-node "${PROCESSES:-2}" --master-addr "${HOST:-localhost}" --master-port 29500 \
  --rdzv-id "${ID:-training}" --max-restarts 3 cli.py fit "$@"
