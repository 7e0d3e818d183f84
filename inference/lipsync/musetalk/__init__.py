"""The ``musetalk`` backend: MuseTalk 1.5 paints the lower half of the face, in the latent space of an autoencoder.

    layout     the folder of published files: which there must be
    files      their content, read without running code, held against their configurations
    networks   autoencoder and UNet: a face and 0.2 s of sound in, the same face speaking out
    hearing    sound → the rows of Whisper's encoder that belong to a moment
    parsing    which part of a picture is skin, lips, nose; the mask of what is painted
    avatar     what is kept of a template: where the face is, its latents, its masks
    blend      a painted face laid over the frame
    backend    all of it together

Source of the method: Zhang et al., "MuseTalk: Real-Time High-Fidelity Video Dubbing via Spatio-Temporal Sampling",
arXiv:2410.10122, and the inference code its authors published (https://github.com/TMElyralab/MuseTalk, MIT), whose
numbers this package reproduces. It needs the extra ``musetalk``; nothing here is imported before the backend loads.
"""
