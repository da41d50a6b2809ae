#!/bin/bash
# Trains on two nodes with four GPUs each. Before the time limit the job saves its state and requeues itself, until the
# training is complete: sbatch examples/cluster/slurm-train.sh --config configs/imagenet.yaml --data.batch_size 32
#SBATCH --job-name=resnet-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=SIGUSR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# One task is one process: the number of devices and nodes need no option. The folder with the code, the images and
# runs/ must be the same on all nodes. SLURM does not pass --cpus-per-task on to srun.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${PYTHON:-python}" cli.py fit "$@"
