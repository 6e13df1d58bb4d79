"""The loop keeps its time: the short version of ``measure_timing.py``."""

from __future__ import annotations

import os
import sys

from measure_timing import measure


def test_ticks_come_in_time():
    """The short version: what a machine does at its best, and that nothing holds the robot without a cause."""
    before = sys.getswitchinterval(), os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    found = measure(3.0)
    assert before == (sys.getswitchinterval(), os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
    timing = found["timing"]
    assert found["reason"] == "solved" or found["state"] == "STOPPED", found
    assert timing["tick_jitter"]["p50"] < 5.0 and timing["servo_dt"]["p50"] < 6.0, timing
    assert len(timing["tick_jitter"]["counts"]) == 40
