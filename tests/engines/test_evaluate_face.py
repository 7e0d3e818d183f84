"""What is said of the look of a face, on faces drawn from the mesh, and that teeth are rigid."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_render import SIDE, Drawn, draw, follow, renderer_of, speechlike

from inference import encode, evaluate, evaluate_face, evaluate_sheet, weights
from inference.face import mesh
from inference.face.model import FaceModel
from inference.lipsync.render import mouths, palette, rows
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import Tracks

pytestmark = pytest.mark.model  # the mesh comes out of the landmarker's file

Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(weights.find("face-landmarker/face_landmarker.task"))


@pytest.fixture(scope="module")
def talking(model: FaceModel) -> Drawn:
    return draw(model, speechlike(80))


@pytest.fixture(scope="module")
def renderer(talking: Drawn, model: FaceModel) -> MeshRenderer:
    return renderer_of(talking, model)


def planes(frame: Frame) -> Frame:
    out = np.empty((SIDE * 3 // 2, SIDE), np.uint8)
    encode.to_planes(frame, out)
    return out


def look(tracks: Tracks, shown: list[Frame], own: list[Frame]) -> evaluate_face.Looks:
    """Every frame is calm, and shows the template's frame of its number."""
    count = len(shown)
    likeness = evaluate_face.Likeness(evaluate_face.Patch(tracks, mesh.LIP_INNER, evaluate_face.FACE), tracks.opening)
    for index in sorted(likeness.wanted(tracks.found)):
        likeness.learn(planes(own[index])[:SIDE], index)
    return evaluate_face.look(
        ((planes(one), planes(other)) for one, other in zip(shown, own, strict=False)),
        tracks,
        np.arange(count, dtype=np.int32),
        calm=np.ones(count, np.bool_),
        opening=tracks.opening[:count],
        likeness=likeness,
    )


def test_widths_are_judged_for_each_person_by_her_own() -> None:
    count = 80
    wider = (0.03 * np.sin(np.arange(count) / 4)).astype(np.float32)
    person = (np.arange(count) >= count // 2).astype(np.int32)
    seen = wider + np.float32([0.5, 0.65])[person]
    seen[3] = np.nan
    assert evaluate.at_rest(seen - wider, person) == pytest.approx(np.float32([0.5, 0.65])[person], abs=1e-6)
    assert evaluate.correlation(wider, seen, 0) < 0.5
    assert evaluate.correlation(wider, seen - evaluate.at_rest(seen - wider, person), 0) > 0.999
    nobody = np.full(count, np.nan, np.float32)
    assert np.isnan(evaluate.at_rest(nobody, person)).all()


def test_what_is_the_templates_own_has_no_fault(model: FaceModel) -> None:
    still = draw(model, np.zeros(12))
    seen = look(follow(still, model), still.frames, still.frames)
    assert np.nanmax(seen.seam) == 0
    assert np.nanmin(seen.likeness) > 0.99
    assert np.isnan(seen.flicker[[0, -1]]).all()  # no frame on one side
    assert np.nanmax(seen.flicker) < 3  # a head that sways evenly does not flicker


def test_each_fault_raises_its_own_measure(model: FaceModel) -> None:
    still = draw(model, np.zeros(12))
    tracks = follow(still, model)
    own = still.frames
    lit = [np.clip(frame.astype(int) + 8 * (k % 2), 0, 255).astype(np.uint8) for k, frame in enumerate(own)]
    assert np.nanmedian(look(tracks, lit, own).flicker) == pytest.approx(16 * 0.86, rel=0.2)  # of 16 levels in 219

    patched = []
    for k, frame in enumerate(own):
        hull = cv2.convexHull(np.round(tracks.pixels(k)[list(mouths.HULL), :2]).astype(np.int32))
        cover = cv2.fillConvexPoly(np.zeros(frame.shape[:2], np.uint8), hull, 1)[..., None]
        patched.append(np.asarray(frame - 12 * cover, np.uint8))
    seen = look(tracks, patched, own)
    assert np.nanmedian(seen.seam) == pytest.approx(12 * 0.86, rel=0.25)
    assert np.nanmax(seen.flicker) < 3  # it stands still

    for half in (slice(None, SIDE // 2), slice(SIDE // 2, None)):  # the whole edge counts, not one place of it
        parts = [frame.copy() for frame in own]
        for part, whole in zip(parts, patched, strict=True):
            part[:, half] = whole[:, half]
        assert 0.3 < np.nanmedian(look(tracks, parts, own).seam) / np.nanmedian(seen.seam) < 0.7

    blurred = [np.asarray(cv2.GaussianBlur(frame, (0, 0), 4), np.uint8) for frame in own]
    assert np.nanmax(look(tracks, blurred, own).likeness) < 0.95


def test_borrowed_mouths_take_on_the_light_at_their_edge(renderer: MeshRenderer, talking: Drawn) -> None:
    edge, index = evaluate_face.Edge(renderer.tracks), int(talking.openings.argmin())
    across = np.linspace(-1, 1, SIDE)
    shadow = 1 / (1 + np.exp(-(across - 0.12) / 0.05))  # its edge lies between the mouth's corner and its middle
    own = np.asarray(talking.frames[index] * (1 - 0.5 * shadow[None, :, None]), np.uint8)
    order = np.full(len(talking.frames), index)
    asked = np.linspace(0, 0.16, len(order)).astype(np.float32)
    plan = renderer.plan(asked, np.zeros(len(order), np.float32), order)
    light = planes(own)[:SIDE]
    steps = [
        edge.step(planes(renderer.render(own, index, plan[k]))[:SIDE], light, index) for k in range(0, len(order), 8)
    ]
    assert np.mean(steps) < 4


def test_the_worst_frames_lie_apart() -> None:
    bad = np.full(100, np.nan, np.float32)
    bad[[10, 11, 12, 50, 90]] = [3, 9, 5, 4, 0]
    assert evaluate_sheet.worst(bad, 25) == [11, 50]


def test_teeth_are_told_by_their_colour(talking: Drawn) -> None:
    wide = int(talking.openings.argmax())
    shown = rows.teeth(talking.frames[wide], talking.points[wide])
    assert shown[1:6].min() > 0.75
    assert shown[10:].max() < 0.1
    lip = np.float32([80, 80, 170])
    pale, gums, dark = np.float32([205, 215, 220]), np.float32([110, 110, 200]), np.float32([20, 18, 35])
    assert palette.enamel(np.stack([pale, lip, gums, dark]), lip).tolist() == pytest.approx([1, 0, 0, 0], abs=0.1)
    grey = np.float32([[200, 200, 200], [100, 100, 100]])
    assert palette.enamel(grey, np.float32([110, 110, 110]))[0] == 1  # by light alone


def test_rows_of_teeth_keep_their_height() -> None:
    shown = np.zeros(rows.ROWS, np.float32)
    shown[:6] = 1.0
    own = rows.Gap(0.12, 0.5, 0.5)

    def height(goal: rows.Gap, low: float, high: float) -> float:
        """Of what lies between two of the mouth's own heights, over their own."""
        shall, place = rows.places(shown, own, goal)
        assert (np.diff(shall) >= -1e-9).all()
        assert shall[-1] == pytest.approx(1)
        at = np.interp([low, high], place, shall)
        return float(at[1] - at[0]) * goal.height / ((high - low) * own.height)

    for gap in (0.07, 0.09, 0.12, 0.16, 0.2):
        assert height(rows.Gap(gap, 0.5, 0.5), 0.0, 0.35) == pytest.approx(1, abs=0.08)
    assert height(rows.Gap(0.2, 0.5, 0.5), 0.5, 1.0) > 1.6  # the dark below them grows
    assert height(rows.Gap(0.07, 0.5, 0.5), 0.5, 1.0) < 0.6
    # Less room than the upper teeth need: the lower lip covers them.
    shall, place = rows.places(shown, own, rows.Gap(0.03, 0.5, 0.5))
    assert place[np.searchsorted(shall, 1.0)] < 0.3
    # An upper lip that hangs lower covers some, too.
    assert rows.places(shown, own, rows.Gap(0.12, 0.53, 0.5))[1][0] > 0.05
    # A mouth that is narrower shows fewer teeth, not narrower ones.
    column = np.linspace(0, 10, 101, dtype=np.float32)
    across = rows.across(column, own, rows.Gap(0.12, 0.5, 0.4))
    assert (np.diff(across) > 0).all()
    assert (across[55] - across[45]) / (column[55] - column[45]) == pytest.approx(0.8, abs=0.02)
    assert across[[0, -1]].tolist() == [0, 10]


def test_staying_costs_more_while_the_opening_moves(renderer: MeshRenderer) -> None:
    chooser = mouths.Chooser(renderer.materials.mouths, renderer.tracks, renderer._residual)
    still, moving = np.full(9, 0.05, np.float32), np.linspace(0.05, 0.13, 9, dtype=np.float32)
    for asked, held in ((still, True), (moving, False)):
        cost = np.full((9, chooser.count), 1e3, np.float32)
        cost[:, 40] = 1.2
        cost[np.arange(9), 20 + np.arange(9)] = 2.0  # nine mouths in the template's own time are hardly worse
        path = chooser._shortest(cost, mouths._changes(asked))
        assert path.tolist() == ([40] * 9 if held else list(range(20, 29)))


def test_borrowed_mouths_move_with_what_is_asked_and_their_teeth_are_rigid(renderer: MeshRenderer) -> None:
    """One long, slow opening, as far as a mouth goes, and words."""
    slow = 0.02 + 0.16 * (0.5 - 0.5 * np.cos(np.arange(80) / 80 * 2 * np.pi)).astype(np.float32)
    for asked in (slow, np.minimum(speechlike(80, seed=9), 0.19)):
        plan = renderer.plan(asked, np.zeros(80, np.float32), np.arange(80))
        seen = evaluate_face.donors(renderer, plan)
        assert np.nanmax(seen.held) <= 6
        assert np.isfinite(seen.stretch).sum() > 30
        assert np.nanquantile(seen.stretch, 0.98) < 1.2
        assert np.nanquantile(seen.stretch, 0.02) > 0.75
