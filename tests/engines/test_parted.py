"""Lips a little apart in the picture: they open and shut as shut ones do, with no shred of what was between them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_render import LIPS, TEETH, Drawn, draw, fill, follow, renderer_of

from inference import weights
from inference.face import mesh
from inference.face.model import FaceModel
from inference.lipsync.render import basis, warp
from inference.lipsync.render.inside import Start
from inference.lipsync.render.plan import Target
from inference.portrait import motion
from inference.portrait.animate import Animator

pytestmark = pytest.mark.model  # the mesh comes out of the landmarker's file

GAP = 0.06  #: eye distances between the lips
CLOTH = (200, 60, 20)  #: BGR; nothing in a mouth is of this colour
Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(weights.find("face-landmarker/face_landmarker.task"))


@pytest.fixture(scope="module")
def field(model: FaceModel) -> basis.Basis:
    return basis.build(model.mesh)


def apart(model: FaceModel, colour: tuple[int, int, int]) -> Drawn:
    drawn = draw(model, np.full(3, GAP), sway=0.0)
    for frame, points in zip(drawn.frames, drawn.points, strict=True):
        fill(frame, points[mesh.LIP_INNER, :2], colour)
    return drawn


def of_cloth(frame: Frame) -> int:
    """Pixels that have its colour, were it only half."""
    blue, green, red = (frame[..., channel].astype(int) for channel in range(3))
    return int((blue > np.maximum(green, red) + 40).sum())


def light(frame: Frame, drawn: Drawn) -> Frame:
    """Luminance of the lips and what is between them."""
    return cv2.cvtColor(warp.around(drawn.points[0, mesh.LIP_OUTER, :2]).cut(frame), cv2.COLOR_BGR2GRAY)


@pytest.mark.parametrize("parted", [True, False])
def test_parted_lips_meet_as_they_are_and_open_ones_are_pressed(
    parted: bool, field: basis.Basis, model: FaceModel
) -> None:
    drawn = draw(model, np.full(1, GAP))
    tracked = follow(drawn, model)
    starts = [Start.of(tracked.mean, opening, np.zeros(11, np.float32), parted) for opening in (0.0, 0.03, GAP)]
    assert [start.ajar for start in starts] == [0, pytest.approx(0.714, abs=0.01), 1]
    assert [start.meets(0.0) for start in starts] == [False, True, True]
    assert [start.press(0.0) > 0 for start in starts] == [False, not parted, not parted]
    upper, lower = (starts[2].moved(field, 0.0, 0.0)[ring, 1] for ring in (mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER))
    assert bool(np.abs(lower - upper).max() < 1e-5) == parted  # all along


def test_nothing_of_what_was_between_is_stretched(model: FaceModel) -> None:
    drawn = apart(model, CLOTH)
    renderer = renderer_of(drawn, model)
    assert not renderer.materials.enamel.any()  # these are no teeth
    before = of_cloth(drawn.frames[0])
    assert before > 100
    for opening in (0.0, 0.03, 0.08, 0.14, 0.2):
        assert of_cloth(renderer.render(drawn.frames[0], 0, Target(opening, 0.0))) < 0.1 * before
    shut = light(renderer.render(drawn.frames[0], 0, Target(0.0, 0.0)), drawn)
    assert shut.min() > 0.4 * float(np.array(LIPS) @ [0.114, 0.587, 0.299])  # a soft line, not a black one
    animator = Animator(drawn.frames[0], drawn.points[0], model)
    still = motion.generate(2, 25, 1, np.zeros(2, np.float32)).scaled(0.0)
    asked = animator.plan(np.float32([0.0, 0.16]), np.zeros(2, np.float32))
    for k in range(2):
        assert of_cloth(animator.frame(asked, still, k)) < 0.1 * before


def test_teeth_that_are_seen_stay_and_lend_their_colour(model: FaceModel) -> None:
    drawn = apart(model, TEETH)
    renderer = renderer_of(drawn, model)
    assert renderer.materials.enamel.all()
    frame = drawn.frames[0]
    same = renderer.render(frame, 0, Target(GAP, 0.0)).astype(int)
    x, y = np.round(drawn.points[0, [mesh.LIP_INNER_TOP, mesh.LIP_INNER_BOTTOM], :2].mean(axis=0)).astype(int)
    assert np.abs(same - frame)[y - 1 : y + 2, x - 8 : x + 9].max() < 25
    wide = light(renderer.render(frame, 0, Target(0.2, 0.0)), drawn)
    assert float(np.quantile(wide, 0.98)) > 0.75 * float(np.array(TEETH) @ [0.114, 0.587, 0.299])
    assert wide.min() < 60  # and the dark is below them
    shut = light(renderer.render(frame, 0, Target(0.0, 0.0)), drawn)
    assert shut.max() < 190  # none is left


@pytest.mark.parametrize(("reach", "alone"), [(slice(2, -2), True), (slice(4, -4), False)])
def test_a_row_of_own_teeth_stands_alone_and_specks_do_not(reach: slice, alone: bool, model: FaceModel) -> None:
    """Drawn teeth below those that are seen would end in a second edge; one tooth that caught the light is no row."""
    drawn = apart(model, (30, 24, 45))
    for frame, points in zip(drawn.frames, drawn.points, strict=True):
        upper, lower = (points[ring[reach], :2] for ring in (mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER))
        fill(frame, np.concatenate([upper, (upper + 0.5 * (lower - upper))[::-1]]), TEETH)
    renderer = renderer_of(drawn, model)
    assert renderer.materials.enamel.all()
    after = cv2.cvtColor(renderer.render(drawn.frames[0], 0, Target(GAP, 0.0)), cv2.COLOR_BGR2GRAY)
    lips = [mesh.LIP_INNER_TOP, mesh.LIP_INNER_BOTTOM]
    x, y = np.round(drawn.points[0, lips, :2].T @ [0.3, 0.7]).astype(int)
    assert (after[y, x] < 80) == alone


def test_the_teeth_of_a_smile_keep_their_height(model: FaceModel) -> None:
    """Teeth above the dark: as the mouth shuts the dark goes first."""
    drawn = draw(model, np.full(3, 0.18), sway=0.0)
    renderer = renderer_of(drawn, model)
    assert not renderer.parted
    assert not renderer.materials.filled
    x = round(float(drawn.points[0, mesh.LIP_INNER_TOP, 0]))
    teeth, dark = [], []
    for opening in (0.18, 0.15, 0.12):
        column = cv2.cvtColor(renderer.render(drawn.frames[0], 0, Target(opening, 0.0)), cv2.COLOR_BGR2GRAY)[:, x]
        part = column[
            round(float(drawn.points[0, mesh.LIP_TOP, 1])) : round(float(drawn.points[0, mesh.LIP_BOTTOM, 1]))
        ]
        teeth.append(int((part > 180).sum()))
        dark.append(int((part < 50).sum()))
    assert min(teeth) > 0.85 * teeth[0]
    assert dark[2] < 0.6 * dark[0]
