"""nanoverify: a language model learns to check its own answers and to correct itself.

S2R, Ma et al., ACL 2025.
"""
import os

# OpenMP threads that spin while they wait slow down a busy machine many times. Both must be set
# before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# about 20 microseconds, so that small operations follow each other without a sleep
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
