"""Tests of paramdelta. One thread of linear algebra for each process.

Test processes share a few cores, and the matrices are small: more threads only wait for each other.
The variables are set before anything imports numpy or torch, and children inherit them.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
