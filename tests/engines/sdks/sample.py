"""An SDK of one's own, for a guest: does what a job says, with every way to go wrong. Valid for Python 3.6."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time

from filepool_guest import InputError, ResourceError, Sdk


def fail(seconds, code):
    time.sleep(seconds)
    os._exit(code)


class Sample(Sdk):
    def load(self, options):
        multiprocessing.set_start_method("spawn", force=True)
        do = options.get("do", "")
        time.sleep(options.get("load", 0))
        if do == "raise":
            raise RuntimeError("the licence has expired")
        if do == "exit":
            sys.exit("no display")
        if do == "hang":
            time.sleep(600)
        if do.startswith("import "):
            __import__(do[7:])
        self.options, self.jobs = options, 0
        self.where = os.getcwd()
        print("the sample is loaded")

    def doing(self):
        return getattr(self, "now", "")

    def run(self, params, job):
        self.jobs += 1
        self.now = params.get("now", "")
        return getattr(self, "do_" + params["do"])(params, job)

    def do_echo(self, params, job):
        return {
            "got": params.get("value"),
            "pid": os.getpid(),
            "version": list(sys.version_info[:2]),
            "options": self.options,
            "cwd": self.where,
            "jobs": self.jobs,
            "attempt": job.attempt,
            "id": job.id,
        }

    def do_tell(self, params, job):
        for percent in (10, 50, 90):
            job.progress("inference", percent, "step %d" % percent)
            job.partial({"at": percent, "data": b"\x00\xff"})
            time.sleep(0.05)
        return {}

    def do_write(self, params, job):
        for name in params["names"]:
            with open(job.output(name), "w") as stream:
                stream.write(name)
        return {}

    def do_sum(self, params, job):
        import numpy

        return {"sum": params["array"].sum(axis=0), "type": str(params["array"].dtype), "nothing": numpy.float32(1.5)}

    def do_input(self, params, job):
        raise InputError("no such voice: anna", "one of: berta, carla")

    def do_memory(self, params, job):
        raise ResourceError("out of memory: 3 MiB asked, 1 MiB free")

    def do_malloc(self, params, job):
        raise MemoryError

    def do_raise(self, params, job):
        raise ValueError(params.get("text", ""))

    def do_quit(self, params, job):
        raise SystemExit(3)

    def do_none(self, params, job):
        return None

    def do_object(self, params, job):
        return {"engine": self}

    def do_exit(self, params, job):
        sys.stderr.write("the last words\n")
        sys.stderr.flush()
        os._exit(7)

    def do_crash(self, params, job):
        ctypes.string_at(0)

    def do_child(self, params, job):
        multiprocessing.Process(target=fail, args=(0.2, 9), name="frames").start()
        time.sleep(600)

    def do_orphan(self, params, job):
        child = multiprocessing.Process(target=fail, args=(0.0, 9), name="frames")
        child.start()
        child.join()
        raise RuntimeError("no frames came")

    def do_hang(self, params, job):
        job.progress("inference", 40, "the second half")
        multiprocessing.Process(target=fail, args=(600, 0), name="helper").start()
        time.sleep(600)

    def do_wait(self, params, job):
        while True:
            job.check()
            time.sleep(0.01)

    def do_deaf(self, params, job):
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(command, start_new_session=True)
        job.progress("inference", 1, str(child.pid))
        time.sleep(600)

    def do_fork(self, params, job):
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(command, start_new_session=True, env={})
        return {"pid": os.getpid()}

    def do_print(self, params, job):
        for _ in range(params["lines"]):
            print("x" * 1000)
        return {}

    def do_grow(self, params, job):
        self.block = bytearray(os.urandom(1 << 20) * params["mb"])
        for _ in range(600):
            job.progress("inference", 1)
            time.sleep(0.1)
        return {}
