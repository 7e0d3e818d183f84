"""What an interpreter is, what it can import, which GPUs it sees: asked in that interpreter, answered as lines of JSON.

    python filepool_probe.py '{"modules": ["cv2", "service.trans_dh_service"]}'

"engine" in a request, {"spec", "device", "options", "load"}, has that engine look at what it would load.

Standard library only, and valid for Python 3.6. Each line is {"event": …}: "python", then "importing" before and
"imported" after each module (an import may end the interpreter, and then the last line says which one), then "gpus".
"""

import ctypes
import glob
import importlib
import json
import os
import platform
import re
import sys
import sysconfig
import time
from typing import Any, Dict, List, Optional, Tuple

#: module -> the package that holds it, where the two differ
PACKAGES = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "ffmpeg": "ffmpeg-python",
    "google": "protobuf",
}
#: start of a library's name -> what brings it
LIBRARIES = (
    ("libcuda.so", "the NVIDIA driver brings it; in a container, start it with the GPU (`--gpus all`)"),
    ("libcudnn", "install the cuDNN that the SDK was built for, and name its folder in LD_LIBRARY_PATH (`env`)"),
    ("libcu", "install the CUDA runtime of that version, and name its lib64 folder in LD_LIBRARY_PATH (`env`)"),
    ("libnv", "install the CUDA runtime of that version, and name its lib64 folder in LD_LIBRARY_PATH (`env`)"),
    ("libGL.so", "apt-get install libgl1, or pip install opencv-python-headless instead of opencv-python"),
    ("libgthread-", "apt-get install libglib2.0-0"),
    ("libglib-", "apt-get install libglib2.0-0"),
    ("libgomp", "apt-get install libgomp1"),
    ("libsndfile", "apt-get install libsndfile1"),
)
_NO_LIBRARY = re.compile(r"(lib[^\s:/]+\.so[.\d]*): cannot open shared object file")
_TAG = re.compile(r"\.(?:cpython|pypy|abi)-?(\d)(\d+)")
_OTHER_ABI = (
    "undefined symbol",
    "wrong ELF class",
    "invalid ELF header",
    "version `GLIBC",
    "version `GLIBCXX",
    "version `CXXABI",
    "compiled against ABI version",
    "compiled against API version",
    "compiled using NumPy",
    "numpy.core.multiarray failed to import",
    "numpy.dtype size changed",
    "does not define module export function",
)


def explain(error: BaseException, places: Optional[List[str]] = None) -> Tuple[str, str]:
    """(kind, hint) of a failed import: "missing", "elsewhere", "abi", "library", "syntax" or "error"; what fixes it."""
    said = str(error)
    library = _NO_LIBRARY.search(said)
    if library:
        name = library.group(1)
        for start, cure in LIBRARIES:
            if name.startswith(start):
                return "library", cure
        return "library", "install the system's package that holds %s, or name its folder in LD_LIBRARY_PATH" % name
    if isinstance(error, ImportError) and any(words in said for words in _OTHER_ABI):
        return "abi", "it was built for another Python, numpy or system; install the versions that the SDK names"
    if isinstance(error, ModuleNotFoundError):
        return _absent(str(error.name or ""), places or [os.getcwd()])
    if isinstance(error, SyntaxError):
        return "syntax", "%s needs a newer Python than %s" % (error.filename or "it", platform.python_version())
    return "error", ""


def _absent(name: str, places: List[str]) -> Tuple[str, str]:
    """Why a module is not found: built for another Python, in a folder that is not searched, or not there."""
    last = name.rpartition(".")[2]
    for place in sys.path:
        for file in glob.glob(os.path.join(glob.escape(place or "."), *name.split(".")[:-1], last + ".*.so")):
            tag = _TAG.search(os.path.basename(file))
            ours = "%d%d" % sys.version_info[:2]
            if tag and tag.group(1) + tag.group(2) != ours:
                return "abi", "%s is built for Python %s.%s, and this is %s: name that Python in `python`" % (
                    file,
                    tag.group(1),
                    tag.group(2),
                    platform.python_version(),
                )
    top = name.partition(".")[0]
    for place in places:
        for depth in ("", "*", "*/*"):
            for form in (top + ".py", top + ".*.so", os.path.join(top, "__init__.py")):
                for file in sorted(glob.glob(os.path.join(glob.escape(place), depth, form))):
                    folder = os.path.dirname(os.path.dirname(file) if file.endswith("__init__.py") else file)
                    if folder not in sys.path:
                        return "elsewhere", "it lies in %s: add that folder to `pythonpath`" % folder
    within = sys.modules.get(name.rpartition(".")[0])
    folders = list(getattr(within, "__path__", []))
    if folders:
        return "missing", "%s has no %s.py or %s.*.so: is it complete?" % (folders[0], last, last)
    package = PACKAGES.get(top, top)
    return "missing", "%s -m pip install %s" % (sys.executable, package)


def try_import(name: str) -> Optional[Dict[str, str]]:
    """None when the module can be imported, else {"kind", "message", "hint"}."""
    try:
        importlib.import_module(name)
    except BaseException as error:
        kind, hint = explain(error)
        hint = str(getattr(error, "hint", "") or hint)
        said = "%s: %s" % (type(error).__name__, str(error).strip() or "no message")
        return {"kind": kind, "message": said[:1000], "hint": hint}
    return None


def gpus() -> Dict[str, Any]:
    """{"gpus": [{"name", "mb"}], "problem"}: what the driver shows to this process, CUDA_VISIBLE_DEVICES included."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {"gpus": [], "problem": "no NVIDIA driver (libcuda.so.1) on this machine"}
    code = cuda.cuInit(0)
    if code:
        return {"gpus": [], "problem": "the NVIDIA driver does not start (cuInit: error %d)" % code}
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(200)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        found.append({"name": name.value.decode("utf-8", "replace"), "mb": size.value >> 20})
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    problem = "" if found or hidden is None else "CUDA_VISIBLE_DEVICES=%s leaves none" % (hidden or '""')
    return {"gpus": found, "problem": problem or ("" if found else "the driver shows no GPU")}


def main(argv: List[str]) -> int:
    """Answer one request."""
    global _out
    _out = os.dup(1)  # what is imported may print, and close what it prints to
    os.dup2(2, 1)
    request = json.loads(argv[1])
    about = {
        "event": "python",
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "abi": sysconfig.get_config_var("SOABI") or "",
        "machine": platform.machine(),
    }
    _say(about)
    for name in request["modules"]:
        _say({"event": "importing", "module": name})
        problem = try_import(name)
        version = getattr(sys.modules.get(name), "__version__", "")
        _say({"event": "imported", "module": name, "problem": problem, "version": str(version)})
    _say(dict(gpus(), event="gpus"))
    if "engine" in request:
        _diagnose(request["engine"])
    return 0


def _diagnose(about: Dict[str, Any]) -> None:
    """Have an engine look at what it would load, and load it where that is asked for; one event for each finding."""
    module, _, name = about["spec"].partition(":")
    try:
        engine = getattr(importlib.import_module(module), name)
        if hasattr(engine, "diagnose"):
            for found in engine.diagnose(about["device"], about["options"]):
                hint = found.hint
                _say({"event": "finding", "check": found.check, "ok": found.ok, "message": found.message, "hint": hint})
        if about["load"]:
            begun = time.monotonic()
            made = engine()
            made.load(about["device"], about["options"])
            if hasattr(made, "warmup"):
                made.warmup()
            seconds = time.monotonic() - begun
            made.close()
            _say({"event": "finding", "check": "load", "ok": True, "message": "took %.1f s" % seconds, "hint": ""})
    except BaseException as error:
        hint = getattr(error, "hint", "") or explain(error)[1]
        said = "%s: %s" % (type(error).__name__, str(error).strip() or "no message")
        _say({"event": "finding", "check": "engine", "ok": False, "message": said, "hint": hint})


_out = 1


def _say(event: Dict[str, Any]) -> None:
    os.write(_out, (json.dumps(event) + "\n").encode("ascii"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
