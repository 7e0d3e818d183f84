"""A talking portrait: one picture and a recording become a video.

engine = Portrait()
engine.load("cpu", {})
with LocalContext() as context:
    engine.run(engine.check({"image": "face.jpg", "audio": "words.wav", "output": "talking.mp4"}), context)

params      what a job may ask
picture     files to upright opaque pictures
reference   whose face it is, and which part of the picture is shown
motion      how the head moves, made up from a seed
pose_warp   a still head turned, by one remap per frame
texture     the picture to be read between its pixels
blink       lids and eyes
animate     all of it in one frame
mesh_backend, echomimic_backend (echomimic)   what makes frames
"""

from inference.portrait.engine import Portrait
from inference.portrait.params import Options, Params

__all__ = ["Options", "Params", "Portrait"]
