#!/bin/bash
# Four tasks work on one sweep. Each of them runs the same command and takes the next run that no other task has:
# sbatch examples/cluster/slurm-sweep.sh --config configs/cifar10.yaml --name lr --grid model.optimizer.lr=0.05,0.1,0.2
#SBATCH --job-name=resnet-sweep
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

# Without srun: sweep starts the trainings itself. A task that reached its time limit leaves an unfinished run; submit the
# same command again to resume it.
"${PYTHON:-python}" cli.py sweep "$@"
