"""What a step frees stays with the process."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from ggnn_ff.memory import keep_freed_memory

def step():
    return sum(one[0] for one in [np.full(2_000_000, 1.0) for _ in range(8)])  # 128 MB

def faults_of_a_step():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5

before = faults_of_a_step()
keep_freed_memory()
print(before, faults_of_a_step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize("own", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}])
def test_memory_of_a_step_is_kept_for_the_next_unless_the_environment_says_otherwise(own):
    answer = subprocess.run([sys.executable, "-c", STEPS], env=os.environ | own, check=True, capture_output=True)
    before, after = map(float, answer.stdout.split())
    assert before > 20  # 128 MB in pages of 4 kB or, where the system makes them, of 2 MB
    if own:
        assert after > 0.5 * before
    else:
        assert after < 0.1 * before
