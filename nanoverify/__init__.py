"""nanoverify: a language model learns to check its own answers and to correct itself (S2R, Ma et al., ACL 2025)."""
import os

# OpenMP threads that spin while they wait make two threads on a busy machine many times slower than one.
# Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # about 20 microseconds: small operations follow each other without a sleep
