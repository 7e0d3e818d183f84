"""The wall clock of one machine, put forward and back: a library before all others, compiled when a compiler is there.

Files keep the times of the real clock, so a jump lasts for them as long as it lasts.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("STORM_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *there = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
    if (there != MAP_FAILED) ahead = there;
    if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += *ahead;
    return (int)failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """Of one machine. `environment`: what its processes need."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._path = folder / "clock"
        self.environment = {"LD_PRELOAD": str(library), "STORM_CLOCK": str(self._path)}
        self._path.write_bytes(struct.pack("q", 0))

    def jump(self, seconds: int) -> None:
        """So many seconds from the real time, at once, for all processes of the machine."""
        with open(self._path, "r+b") as file:
            file.write(struct.pack("q", seconds))


def library(folder: Path) -> Path | None:
    """The compiled library; None: there is no compiler, or waits of this Python go by the wall clock."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.version_info < (3, 11):
        return None
    source, made = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(source)], capture_output=True)
    return made if done.returncode == 0 else None
