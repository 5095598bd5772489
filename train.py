"""Trains a detector, with or without distillation.

    python train.py --config=configs/NAME.py[:tiny] --workdir=DIR [--config.a.b=v]

The same command continues from the newest checkpoint in DIR. Exit code 0: trained to the end; 2: a
fault in the arguments, the config or the data; 75 (or --exit-code-interrupted): interrupted, with
a checkpoint; 130: interrupted twice, or before there was anything to save; 1: a bug, or a loss that
became non-finite. Several hosts: --distributed, see docs/several-machines.md.

The parts of a training in the order in which they run, to find the place for a change:

    configs/NAME.py               the recipe: every key that differs from recipes/common.py
    drkd_jax/cli/train.py         flags and exit codes; the recipe becomes a plain dict
    drkd_jax/training/setup.py    build_run: data, student, schedule and optimiser, then
                                  build_teaching: teacher and distiller, then the compiled step
    drkd_jax/training/loop.py     train: a batch, a step, a log line, a checkpoint, an evaluation
    drkd_jax/step/train_step.py   loss_terms: where images become a loss: the student's features
                                  and losses, the teacher's features, the distiller; then _update
    drkd_jax/distill/distiller.py both sides' maps and boxes become the terms, one file each
    drkd_jax/evaluation.py        detections become COCO's numbers
"""

from drkd_jax.fault_tolerance.interrupt import leave_quietly

if __name__ == "__main__":
    leave_quietly()  # Ctrl-C during the imports below

from absl import flags

from drkd_jax.cli import train

flags.adopt_module_key_flags(train)  # so that --help lists them

if __name__ == "__main__":
    train.main()
