"""Trains a detector, with or without distillation.

    python train.py --config=configs/NAME.py[:tiny] --workdir=DIR [--config.a.b=v]

The same command goes on from the newest checkpoint in DIR. Exit code 0: trained to the end; 2: a
fault in the arguments, the config or the data; 75 (or --exit-code-interrupted): interrupted, with
a checkpoint; 130: interrupted twice, or before there was anything to save; 1: our fault, or a loss
that stopped being finite. Several hosts: --distributed, see docs/several-machines.md.
"""

from drkd_jax.training.interrupt import leave_quietly

if __name__ == "__main__":
    leave_quietly()  # Ctrl-C during the imports below

from absl import flags

from drkd_jax.cli import train

flags.adopt_module_key_flags(train)  # so that --help lists them

if __name__ == "__main__":
    train.main()
