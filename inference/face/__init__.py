"""Faces: found, followed and measured on OpenCV alone.

    mesh      the canonical mesh: 478 vertices, triangles, index groups
    model     pixels → detections and 478 landmarks
    plausible whether those landmarks are a human face
    track     one face through a stream of frames
    pose      head coordinates and the pose of the head
    measure   how far a mouth is open, how wide, how high …
    filters   smoothing over time
    analysis  all of it for a whole video, and its cache

Two coordinate systems. *Pixels*: x right, y down, z away from the camera in pixels of the same scale, its
origin near the centre of the head. *Head coordinates*: the same directions on a face that looks straight
ahead, unit = the distance of the outer eye corners (33–263), origin that of the canonical mesh.
"""
