"""The mesh renderer on faces drawn from the mesh itself, where every point is known, and on a painting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from inference import weights
from inference.face import measure, mesh, pose
from inference.face.model import FaceModel, region_of_detection, region_of_points
from inference.lipsync.render import (
    basis,
    cast,
    compose,
    inside,
    interior,
    materials,
    mouths,
    own_inside,
    palette,
    plan,
    seam,
    teeth,
    tracks,
    warp,
)
from inference.lipsync.render.calibrate import Calibration
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.renderer import MeshRenderer

pytestmark = pytest.mark.model  # the mesh comes out of the landmarker's file

PAINTING = Path(__file__).resolve().parents[2] / "examples" / "portrait" / "mona_lisa.jpg"
SIDE, UNIT = 320, 96.0  #: pixels of the drawn pictures, and of their eye distance
SEAM = 0.014  #: how far below the landmarks the drawn seam lies
SKIN, LIPS, DARK, TEETH = (120, 150, 190), (80, 80, 170), (20, 18, 35), (205, 215, 220)
Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """A template drawn from the mesh."""

    points: NDArray[np.float32]
    found: NDArray[np.bool_]
    frames: list[Frame]
    openings: NDArray[np.float32]
    cast: tuple[int, ...] = ()  #: whom each frame shows; () the same person, one shot

    @property
    def clear(self) -> NDArray[np.bool_]:
        return self.found

    @property
    def shot(self) -> NDArray[np.int32]:
        return np.cumsum(np.diff(self.person, prepend=self.person[:1]) != 0, dtype=np.int32)

    @property
    def person(self) -> NDArray[np.int32]:
        return np.array(self.cast or [0] * len(self.found), np.int32)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel(weights.find("face-landmarker/face_landmarker.task"))


@pytest.fixture(scope="module")
def field(model: FaceModel) -> basis.Basis:
    return basis.build(model.mesh)


def poses(count: int, yaw: float = 4.0, roll: float = 0.0, sway: float = 3.0) -> pose.Pose:
    """Heads that sway a little."""
    t = np.arange(count)
    turns = np.stack([pose.rotation_of(yaw + 2 * np.sin(k / 9), 1.0, roll) for k in t])
    shift = np.stack([SIDE / 2 + sway * np.sin(t / 7), 0.42 * SIDE + 0 * t, 0 * t], axis=1)
    return pose.Pose(np.full(count, UNIT, np.float32), turns.astype(np.float32), shift.astype(np.float32))


def draw(
    model: FaceModel,
    openings: NDArray[np.floating],
    lips: tuple[int, int, int] = LIPS,
    wider: float = 0.0,
    **head: float,
) -> Drawn:
    """A face with these openings: grainy skin, red lips, a dark seam or a mouth with teeth."""
    field = basis.build(model.mesh)
    rest = basis.extend(seam.close(model.mesh.vertices, np.zeros(11, np.float32)))
    shapes = np.stack([(rest + field.move(float(o), wider))[: mesh.POINTS] for o in openings])
    heads = poses(len(openings), **head)
    points = heads.to_pixels(shapes)
    rng = np.random.default_rng(5)
    grain = cv2.GaussianBlur(rng.normal(0, 14, (SIDE, SIDE, 1)), (0, 0), 1.2)[..., None]
    frames = []
    for k, opening in enumerate(openings):
        frame = np.full((SIDE, SIDE, 3), SKIN, np.float64)
        frame += np.linspace(-18, 18, SIDE)[None, :, None]
        shift = heads.translation[k, :2] - heads.translation[0, :2]
        frame += cv2.warpAffine(grain, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]), (SIDE, SIDE))[..., None]
        picture = np.clip(frame, 0, 255).astype(np.uint8)
        fill(picture, points[k, mesh.LIP_OUTER, :2], lips)
        line = heads.take(k).to_pixels((shapes[k] + [0, SEAM, 0]).astype(np.float32)[None])[0]
        if opening < 0.01:
            corners = np.round(line[mesh.LIP_INNER_UPPER, :2] * 16).astype(np.int32)
            cv2.polylines(picture, [corners], False, DARK, 2, cv2.LINE_AA, 4)
        else:
            fill(picture, points[k, mesh.LIP_INNER, :2], DARK)
            upper, lower = points[k, mesh.LIP_INNER_UPPER[3:-3], :2], points[k, mesh.LIP_INNER_LOWER[3:-3], :2]
            fill(picture, np.concatenate([upper, (upper + 0.5 * (lower - upper))[::-1]]), TEETH)
        frames.append(cv2.GaussianBlur(picture, (0, 0), 0.7))
    return Drawn(points, np.ones(len(openings), bool), frames, np.asarray(openings, np.float32))


def fill(picture: Frame, ring: NDArray[np.floating], colour: tuple[int, int, int]) -> None:
    cv2.fillPoly(picture, [np.round(ring * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)


def speechlike(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Openings that come and go, with pauses."""
    rng = np.random.default_rng(seed)
    steps = np.repeat(rng.choice([0, 0, 0.05, 0.1, 0.16, 0.2], count), 3)[:count]
    return np.convolve(np.pad(steps, 2, mode="edge"), [0.1, 0.2, 0.4, 0.2, 0.1], "valid").astype(np.float32)


@pytest.fixture(scope="module")
def silent(model: FaceModel) -> Drawn:
    return draw(model, np.zeros(30))


@pytest.fixture(scope="module")
def talking(model: FaceModel) -> Drawn:
    return draw(model, speechlike(80))


@pytest.fixture(scope="module")
def quiet_renderer(silent: Drawn, model: FaceModel) -> MeshRenderer:
    strips = [seam.strip(silent.frames[k], follow(silent, model), k) for k in range(0, 30, 3)]
    return renderer_of(silent, model, Materials(seam=seam.from_strips(strips)))


@pytest.fixture(scope="module")
def own_renderer(talking: Drawn, model: FaceModel) -> MeshRenderer:
    return renderer_of(talking, model)


def follow(drawn: Drawn, model: FaceModel) -> tracks.Tracks:
    (only,) = tracks.follow(drawn, model.mesh.vertices)
    return only


def renderer_of(drawn: Drawn, model: FaceModel, others: Materials | None = None) -> MeshRenderer:
    """With the materials that are in its frames, or others."""
    followed = follow(drawn, model)
    (own,) = (others,) if others is not None else prepare([followed], drawn.frames, model)
    return MeshRenderer(followed, own, model.mesh)


# ------------------------------------------------------------------ shapes


def test_the_basis_moves_by_what_it_is_asked_for(model: FaceModel, field: basis.Basis) -> None:
    rest = basis.extend(seam.close(model.mesh.vertices, np.zeros(11, np.float32)))
    before = measure.mouth(rest[None, : mesh.POINTS])
    for opening, width in ((0.1, 0.0), (0.2, 0.05), (0.05, -0.08), (0.0, 0.06)):
        after = measure.mouth((rest + field.move(opening, width))[None, : mesh.POINTS])
        assert after.opening[0] == pytest.approx(opening, abs=0.004)
        assert after.width[0] - before.width[0] == pytest.approx(width, abs=0.006)
    still = (model.mesh.vertices[:, 1] < basis.FADE_TOP[0]) | (np.abs(model.mesh.vertices[:, 0]) > 0.8)
    assert not field.motion[:, : mesh.POINTS][:, still].any()
    mirrored = field.motion[:, model.mesh.mirror] * [-1, 1, 1]
    assert np.abs(field.motion[:, : mesh.VERTICES] - mirrored[:, : mesh.VERTICES]).max() < 1e-4


def test_spreading_a_shut_mouth_does_not_part_it(field: basis.Basis) -> None:
    apart = field.motion[1, mesh.LIP_INNER_LOWER] - field.motion[1, mesh.LIP_INNER_UPPER]
    assert not apart.any()


def test_openings_are_capped_softly() -> None:
    asked = np.linspace(-0.1, 0.6, 200)
    got = basis.soften(asked)
    assert (np.diff(got) >= 0).all()
    assert got.min() == 0
    assert got.max() < basis.OPENING_MAX + 1e-6
    assert np.allclose(
        got[(asked > 0) & (asked < basis.OPENING_KNEE)], asked[(asked > 0) & (asked < basis.OPENING_KNEE)]
    )
    assert np.abs(np.diff(got[asked > 0], 2)).max() < 2e-4


@pytest.mark.parametrize(
    ("openings", "kind"),
    [
        (np.zeros(60), tracks.Kind.SILENT),
        (np.full(60, 0.1), tracks.Kind.SMILING),
        (speechlike(60), tracks.Kind.TALKING),
        (speechlike(12), tracks.Kind.SMILING),  # too few mouths to choose from
    ],
)
def test_templates_are_told_apart_by_their_mouths(openings: NDArray[np.float32], kind: tracks.Kind) -> None:
    assert tracks.classify(openings) is kind


def test_smoothing_takes_the_tremble_and_leaves_the_movement(model: FaceModel) -> None:
    drawn = draw(model, np.zeros(40))
    noise = np.random.default_rng(2).normal(0, 0.1, drawn.points.shape).astype(np.float32)
    still = follow(replace(drawn, points=drawn.points[:1] + noise), model)
    assert (
        np.diff(still.points[:, mesh.LIP_OUTER, :2], axis=0).std()
        < 0.6 * np.diff((drawn.points[:1] + noise)[:, mesh.LIP_OUTER, :2], axis=0).std()
    )
    # A nod: 6 pixels in two frames.
    nod = drawn.points[:1] + 0 * noise
    nod[20:, :, 1] += 6
    followed = follow(replace(drawn, points=nod), model).points
    assert np.abs(followed - nod)[..., :2].max() < 1.0


def test_the_effect_fades_beside_lost_faces(silent: Drawn, model: FaceModel) -> None:
    found = silent.found.copy()
    found[10:14] = False
    strength = follow(replace(silent, found=found), model).strength
    assert (strength[10:14] == 0).all()
    assert 0 < strength[9] < strength[8] < strength[7] < 1
    assert strength[0] == strength[-1] == 1


# ------------------------------------------------------------------ warping


def test_a_shifted_mesh_gives_one_displacement_without_holes(model: FaceModel, field: basis.Basis) -> None:
    goal = poses(1).to_pixels(basis.extend(model.mesh.vertices))[0]
    source = goal + np.float32([3.0, -2.0, 0.0])
    box = warp.around(goal[mesh.OVAL, :2]).within(SIDE, SIDE)
    for step in (1, 2):
        painting = warp.Painter(field).paint(
            goal, warp.Patch(field.triangles, np.zeros(len(field.triangles), np.int64)), box, step
        )
        inside = np.zeros(painting.ids.shape, np.uint8)
        ring = (goal[mesh.OVAL, :2] - [box.x, box.y]) / step
        cv2.fillPoly(inside, [np.round(ring).astype(np.int32)], 1)
        inside = cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0
        assert (painting.ids[inside] >= 0).all()
        dx, dy = painting.sample(source)
        assert np.abs(dx[painting.ids >= 0] - 3).max() < 1e-3
        assert np.abs(dy[painting.ids >= 0] + 2).max() < 1e-3
        assert not dx[painting.ids < 0].any()


@pytest.mark.parametrize(("opening", "width"), [(0.24, 0.0), (0.24, -0.1), (0.1, 0.1), (0.0, 0.12), (0.02, -0.14)])
def test_the_face_does_not_fold(model: FaceModel, field: basis.Basis, opening: float, width: float) -> None:
    head = poses(1, yaw=22.0, roll=-12.0)
    rest = basis.extend(seam.close(model.mesh.vertices, np.zeros(11, np.float32)))
    source, goal = head.to_pixels(rest)[0], head.to_pixels(rest + field.move(opening, width))[0]
    mover = compose.Mover(warp.Painter(field))
    box = compose.face_box(goal, UNIT, SIDE, SIDE)
    x, y = warp.maps(mover._field(source, goal, UNIT, box), box)
    gx, gy = np.gradient(x), np.gradient(y)
    turned = gx[1] * gy[0] - gx[0] * gy[1]
    mouth = np.zeros(turned.shape, np.uint8)
    fill_at = goal[mesh.LIP_INNER, :2] - [box.x, box.y]
    cv2.fillPoly(mouth, [np.round(fill_at).astype(np.int32)], 1)
    outside = cv2.dilate(mouth, np.ones((5, 5), np.uint8)) == 0
    assert (turned[outside] < 0).sum() <= 12  # of about 30,000 pixels


def test_the_seam_is_found_beside_the_landmarks(silent: Drawn, model: FaceModel) -> None:
    followed = follow(silent, model)
    strips = [seam.strip(silent.frames[k], followed, k) for k in (0, 10, 20)]
    offsets = seam.from_strips(strips)
    assert np.abs(offsets[2:-2] - SEAM).max() < 0.006
    flat = [np.ones_like(strip) for strip in strips]
    assert not seam.from_strips(flat).any()  # nothing to be seen: the landmarks are believed
    assert not seam.from_strips([]).any()


# ------------------------------------------------------------------ silent templates


def test_silence_returns_the_template_itself(silent: Drawn, quiet_renderer: MeshRenderer) -> None:
    nothing = np.zeros(30, np.float32)
    asked = quiet_renderer.plan(nothing, nothing, np.arange(30))
    for k in (0, 7, 29):
        assert np.array_equal(quiet_renderer.render(silent.frames[k], k, asked[k]), silent.frames[k])


def test_only_the_lower_face_changes(silent: Drawn, quiet_renderer: MeshRenderer) -> None:
    before = silent.frames[3].copy()
    after = quiet_renderer.render(silent.frames[3], 3, plan.Target(0.15, 0.02))
    assert np.array_equal(silent.frames[3], before)
    changed = np.argwhere((after != before).any(axis=2))
    box = compose.face_box(quiet_renderer.tracks.pixels(3), UNIT, SIDE, SIDE).grow(round(0.1 * UNIT))
    low, high = changed.min(axis=0), changed.max(axis=0)
    assert box.y <= low[0] <= high[0] < box.y + box.height
    assert box.x <= low[1] <= high[1] < box.x + box.width
    assert len(changed) < 0.3 * SIDE * SIDE


def test_a_window_of_a_frame_is_enough(
    silent: Drawn, quiet_renderer: MeshRenderer, talking: Drawn, own_renderer: MeshRenderer, model: FaceModel
) -> None:
    asked = own_renderer.plan(speechlike(80, seed=4), np.zeros(80, np.float32), np.arange(80))
    assert asked.target(40).pictures
    for drawn, renderer, target in (
        (silent, quiet_renderer, plan.Target(0.2, -0.05)),
        (talking, own_renderer, asked.target(40)),
    ):
        index = 40 % len(drawn.frames)
        frame = cv2.copyMakeBorder(drawn.frames[index], 64, 90, 40, 110, cv2.BORDER_REFLECT)
        moved = Drawn(drawn.points + np.float32([40, 64, 0]), drawn.found, drawn.frames, drawn.openings)
        shifted = renderer_of(moved, model, renderer.materials)
        left, top, right, bottom = shifted.window(index, frame.shape[1], frame.shape[0]) or (0, 0, 0, 0)
        assert not any(side % 2 for side in (left, top, right, bottom))
        whole = shifted.render(frame, index, target)
        part = shifted.render(frame[top:bottom, left:right], index, target, (left, top))
        inside = np.zeros(frame.shape[:2], bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(whole[~inside], frame[~inside])
        assert np.abs(whole[top:bottom, left:right].astype(int) - part).max() <= 2
        assert (part != frame[top:bottom, left:right]).any()
        assert inside.mean() < 0.6


def test_frames_without_a_face_pass_through(silent: Drawn, model: FaceModel) -> None:
    found = silent.found.copy()
    found[5] = False
    points = np.where(found[:, None, None], silent.points, np.nan).astype(np.float32)
    lost = Drawn(points, found, silent.frames, silent.openings)
    renderer = renderer_of(lost, model, Materials())
    assert renderer.render(silent.frames[5], 5, plan.Target(0.2, 0.0)) is silent.frames[5]


def test_frames_with_something_before_the_mouth_are_left_alone(silent: Drawn, model: FaceModel) -> None:
    clear = np.ones(len(silent.frames), bool)
    clear[12:21] = False
    covered = Drawn(silent.points, clear, silent.frames, silent.openings)
    renderer = renderer_of(covered, model)
    assert renderer.render(silent.frames[15], 15, plan.Target(0.2, 0.0)) is silent.frames[15]
    opened = renderer.render(silent.frames[3], 3, plan.Target(0.2, 0.0)).astype(int)
    half = renderer.render(silent.frames[10], 10, plan.Target(0.2, 0.0)).astype(int)
    change = np.abs(half - silent.frames[10]).sum()
    assert 0 < change < 0.8 * np.abs(opened - silent.frames[3]).sum()  # it fades


def test_no_mouth_is_borrowed_from_a_frame_with_a_hand(talking: Drawn, model: FaceModel) -> None:
    clear = np.ones(len(talking.frames), bool)
    clear[10:30] = False
    covered = Drawn(talking.points, clear, talking.frames, talking.openings)
    borrowed = renderer_of(covered, model).materials.mouths.frame
    assert len(borrowed)
    assert not set(borrowed.tolist()) & set(range(10, 30))


def inside_of(renderer: MeshRenderer, opening: float, index: int = 0) -> tuple[NDArray[np.float64], pose.Pose]:
    """(550, 2) where the points of the rendered face are."""
    shape = seam.close(renderer.tracks.shape[index], renderer.materials.seam)
    head = renderer.tracks.pose.take(index)
    return head.to_pixels((basis.extend(shape) + renderer.basis.move(opening, 0))[None])[0], head


def test_an_opened_mouth_shows_teeth_over_dark(silent: Drawn, quiet_renderer: MeshRenderer) -> None:
    after = quiet_renderer.render(silent.frames[0], 0, plan.Target(0.2, 0.0))
    goal, _ = inside_of(quiet_renderer, 0.2)
    gray = cv2.cvtColor(after, cv2.COLOR_BGR2GRAY).astype(float)
    top, bottom = goal[mesh.LIP_INNER_TOP, :2], goal[mesh.LIP_INNER_BOTTOM, :2]
    column = [gray[round(y), round(x)] for x, y in top + np.linspace(0.15, 0.75, 12)[:, None] * (bottom - top)]
    assert max(column[:4]) > 1.5 * min(column[4:])
    assert min(column) < 0.45 * np.mean(SKIN)


def test_upper_teeth_stay_with_the_head(quiet_renderer: MeshRenderer) -> None:
    edges = []
    for opening in (0.1, 0.16, 0.22):
        goal, head = inside_of(quiet_renderer, opening)
        light = interior.Skin(np.float32(SKIN), 1.0, 1.0, np.zeros((0, 0), np.float32))
        drawing = quiet_renderer.interior.draw(goal, head, interior.Mouth(opening), light)
        assert drawing is not None
        x = round(float(goal[mesh.LIP_INNER_TOP, 0]) + 4) - drawing.box.x
        column = drawing.bgr[:, x, 1] * (drawing.cover[:, x] > 0.5)
        edges.append(drawing.box.y + int(np.argmin(np.diff(column[: len(column) * 2 // 3]))))
    assert max(edges) - min(edges) <= 1


@pytest.mark.parametrize(("yaw", "roll"), [(0.0, 0.0), (30.0, 0.0), (-30.0, 20.0), (10.0, 80.0), (0.0, 180.0)])
def test_insides_stay_within_the_lips_of_turned_heads(quiet_renderer: MeshRenderer, yaw: float, roll: float) -> None:
    shape = seam.close(quiet_renderer.tracks.mean, quiet_renderer.materials.seam)
    head = poses(1, yaw=yaw, roll=roll)
    goal = head.to_pixels((basis.extend(shape) + quiet_renderer.basis.move(0.18, 0))[None])[0]
    light = interior.Skin(np.float32(SKIN), 1.0, 1.0, np.zeros((0, 0), np.float32))
    drawing = quiet_renderer.interior.draw(goal, head, interior.Mouth(0.18), light)
    assert drawing is not None
    assert np.isfinite(drawing.bgr).all()
    contour = quiet_renderer.interior.contour(goal) - [drawing.box.x, drawing.box.y]
    mask = np.zeros(drawing.cover.shape, np.uint8)
    cv2.fillPoly(mask, [np.round(contour).astype(np.int32)], 1)
    assert drawing.cover[cv2.dilate(mask, np.ones((7, 7), np.uint8)) == 0].max() < 0.05
    assert drawing.cover[cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0].min() > 0.8
    assert drawing.bgr[..., 1][mask > 0].max() > 1.0 * SKIN[1]  # teeth are in it, wherever down is


def test_teeth_are_told_apart_and_fade_to_the_corners(quiet_renderer: MeshRenderer) -> None:
    goal, head = inside_of(quiet_renderer, 0.2)
    light = interior.Skin(np.float32(SKIN), 1.0, 1.0, np.zeros((0, 0), np.float32))
    drawing = quiet_renderer.interior.draw(goal, head, interior.Mouth(0.2), light)
    assert drawing is not None
    top = goal[mesh.LIP_INNER_TOP, :2] - [drawing.box.x, drawing.box.y]
    row = drawing.bgr[round(float(top[1]) + 0.035 * UNIT), :, 1]  # across the crowns
    middle, tooth = round(float(top[0])), teeth.UPPER[0].width * UNIT
    crowns = [row[round(middle + side * tooth / 2)] for side in (-1, 1)]
    assert row[middle - 1 : middle + 2].min() < 0.93 * min(crowns)  # the line between the front teeth
    for side in (-1, 1):
        outer = [row[round(middle + side * far * tooth)] for far in (0.5, 1.4, 2.2)]
        assert outer[0] > outer[1] > outer[2]


def test_a_finer_row_of_teeth_is_the_same_row() -> None:
    fine, coarse = teeth.row(True, 0), teeth.row(True, 6)
    assert coarse.texture.shape[0] < 0.5 * fine.texture.shape[0]
    assert coarse.edge * coarse.cell == pytest.approx(fine.edge * fine.cell, abs=coarse.cell)
    shrunk = cv2.resize(fine.texture, coarse.texture.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk - coarse.texture).max() < 1e-5
    assert [teeth.step_for(pixel * teeth.CELL) for pixel in (0.2, 1, 2, 4)] == [0, 0, 4, 8]


def test_colours_of_the_inside_are_those_of_the_picture() -> None:
    skin = np.float32([120, 150, 190])
    grey = palette.palette(np.float32([140, 140, 140]))
    assert np.ptp(grey.tongue) < 1e-3
    assert np.ptp(grey.enamel) < 1e-3
    assert grey.chroma == 0
    photo, paint = palette.palette(skin, np.ones(3, np.float32)), palette.palette(skin, np.float32([0.72, 1.02, 1.07]))
    assert paint.enamel[0] / paint.enamel[2] < 0.75 * photo.enamel[0] / photo.enamel[2]  # yellower
    assert paint.enamel @ palette.GREY < 0.85 * (photo.enamel @ palette.GREY)  # and darker
    assert photo.enamel @ palette.GREY > 1.2 * (skin @ palette.GREY)


def test_a_tiny_tongue_below_its_box_is_no_trouble(quiet_renderer: MeshRenderer) -> None:
    goal, head = inside_of(quiet_renderer, 0.02)
    light = interior.Skin(np.float32(SKIN), 1.0, 1.0, np.zeros((0, 0), np.float32))
    assert quiet_renderer.interior.draw(goal, head, interior.Mouth(0.25), light) is not None


def test_faces_at_the_edge_of_the_frame_are_no_trouble(silent: Drawn, model: FaceModel) -> None:
    for left, top in ((150, 0), (0, 150), (-150, 0), (0, -90), (400, 400)):
        moved = silent.points - np.float32([left, top, 0])
        shifted = [np.roll(frame, (-top, -left), axis=(0, 1)) for frame in silent.frames[:2]]
        drawn = Drawn(moved[:2], silent.found[:2], shifted, silent.openings[:2])
        renderer = renderer_of(drawn, model, Materials())
        assert renderer.render(shifted[1], 1, plan.Target(0.2, -0.05)).shape == (SIDE, SIDE, 3)


# ------------------------------------------------------------------ open mouths


def test_a_smile_keeps_its_own_teeth_in_place(model: FaceModel) -> None:
    smile = draw(model, np.full(3, 0.13))
    renderer = renderer_of(smile, model, Materials(filled=True))
    assert renderer.tracks.kind is tracks.Kind.SMILING
    wider = renderer.render(smile.frames[0], 0, plan.Target(0.2, 0.0)).astype(int)
    middle = smile.points[0, mesh.LIP_INNER_TOP, :2]
    x, y = round(float(middle[0])), round(float(middle[1]) + 0.02 * UNIT)
    assert np.abs(wider[y, x] - smile.frames[0][y, x]).max() < 25  # the same tooth
    shut = cv2.cvtColor(renderer.render(smile.frames[0], 0, plan.Target(0.0, 0.0)), cv2.COLOR_BGR2GRAY)
    lips = warp.around(smile.points[0, mesh.LIP_OUTER, :2]).cut(shut)
    assert lips.max() < 200  # no tooth is left


def test_open_lips_are_pressed_on_each_other_to_shut(model: FaceModel, field: basis.Basis) -> None:
    wide = draw(model, np.full(1, 0.13)).points[0] / UNIT
    ajar, shut = (inside.Start.of(wide, opening, np.zeros(11, np.float32), parted=False) for opening in (0.13, 0.0))
    assert (ajar.ajar, ajar.gap, shut.ajar, shut.gap) == (1.0, pytest.approx(0.13), 0.0, 0.0)
    moved = ajar.moved(field, 0.1, 0.0)[None, : mesh.POINTS]
    assert measure.mouth(moved).opening[0] == pytest.approx(0.1, abs=0.01)
    assert ajar.press(0.0) == inside.PRESS
    assert ajar.press(0.1) == shut.press(0.0) == 0


def test_a_smile_shuts_in_the_colours_of_its_lips(model: FaceModel) -> None:
    """No specks of teeth, no black line."""
    smile = draw(model, np.full(3, 0.13))
    renderer = renderer_of(smile, model)
    shut = renderer.render(smile.frames[1], 1, plan.Target(0.0, 0.0)).astype(int)
    points = renderer.tracks.pixels(1)
    seen = np.round(points[mesh.LIP_OUTER, :2]).astype(np.int32)
    mask = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [seen], 1)
    pixels = shut[mask > 0]
    assert (pixels[:, 0] < SKIN[0] + 40).all()  # teeth have 205 of blue
    darkest = pixels[pixels.sum(axis=1).argmin()]
    assert darkest[2] > 0.45 * LIPS[2]
    assert darkest[2] - darkest[0] > 0.35 * (LIPS[2] - LIPS[0])  # red as lips are, not grey


def test_the_corners_of_a_smile_come_in_as_it_shuts(model: FaceModel, silent: Drawn) -> None:
    renderer = renderer_of(draw(model, np.full(12, 0.13), wider=0.1), model, Materials())
    asked = np.array([0.13] * 5 + [0.0] * 6 + [0.13] * 5, np.float32)
    wide = renderer.plan(asked, 0 * asked, np.zeros(16, int)).width
    assert np.abs(wide[[0, -1]]).max() < 1e-3
    assert wide[8] < -0.015
    assert np.abs(np.diff(wide)).max() < 0.6 * np.ptp(wide)  # they do not jump
    still = renderer_of(silent, model, Materials()).plan(asked, 0 * asked, np.zeros(16, int))
    assert not still.width.any()


def test_there_are_no_stairs_between_lips_that_meet(model: FaceModel, field: basis.Basis) -> None:
    """A light upper and a dark lower lip, on a head that leans: the seam crosses rows of pixels."""
    drawn = draw(model, np.full(1, 0.13), roll=9.0)
    followed = follow(drawn, model)
    head = followed.pose.take(0)
    start = inside.Start.of(followed.shape[0], 0.13, np.zeros(11, np.float32), parted=False)
    source, goal = (head.to_pixels(shape[None])[0] for shape in (start.shape, start.moved(field, 0.0, 0.0)))
    middle = (source[mesh.LIP_INNER_UPPER, :2] + source[mesh.LIP_INNER_LOWER, :2]) / 2
    frame = np.full((SIDE, SIDE, 3), 200, np.uint8)
    fill(
        frame, np.concatenate([middle, [[SIDE, middle[-1, 1]], [SIDE, SIDE], [0, SIDE], [0, middle[0, 1]]]]), (60,) * 3
    )
    change = compose.Mover(warp.Painter(field)).move(frame, source, goal, UNIT)
    assert change is not None
    box, pixels = change
    seam_y = ((goal[mesh.LIP_INNER_UPPER, 1] + goal[mesh.LIP_INNER_LOWER, 1]) / 2)[3:-3]
    seam_x = goal[mesh.LIP_INNER_UPPER, 0][3:-3]
    across = np.arange(round(float(seam_x[0])), round(float(seam_x[-1])))
    down = np.round(np.interp(across, seam_x, seam_y)).astype(int)
    column = np.stack([pixels[down - box.y + k, across - box.x, 0] for k in range(-4, 5)]).astype(int)
    mixed = ((column > 75) & (column < 185)).any(axis=0)
    assert (column[0] > 185).all()
    assert (column[-1] < 75).all()
    assert mixed.mean() > 0.6


def test_nothing_is_drawn_between_lips_pressed_on_each_other(quiet_renderer: MeshRenderer) -> None:
    goal, head = inside_of(quiet_renderer, -0.05)
    light = interior.Skin(np.array(SKIN, np.float32), 1.0, 1.0, np.zeros((0, 0), np.float32))
    assert quiet_renderer.interior.draw(goal, head, interior.Mouth(0.0), light) is None
    goal, head = inside_of(quiet_renderer, 0.05)
    assert quiet_renderer.interior.draw(goal, head, interior.Mouth(0.05), light) is not None


def test_a_tongue_is_light_in_the_open_and_darker_beside_the_lips(quiet_renderer: MeshRenderer) -> None:
    """Landmarks find lips by the dark beside them, eyes take a dark ring for a fault: so it is soft, and no ink."""
    light = interior.Skin(np.array(SKIN, np.float32), 1.0, 1.0, np.zeros((0, 0), np.float32))
    flesh = float(quiet_renderer.interior.palette(light).tongue @ palette.GREY)
    for opening in (0.12, 0.2):
        goal, head = inside_of(quiet_renderer, opening)
        drawn = quiet_renderer.interior.draw(goal, head, interior.Mouth(opening, upper=0.0), light)
        assert drawn is not None
        x, y = (round(float(at)) for at in goal[mesh.LIP_INNER_BOTTOM, :2] - [drawn.box.x, drawn.box.y])
        column = drawn.bgr[:, x] @ palette.GREY
        inside = column[: y + 1][drawn.cover[: y + 1, x] > 0.5]
        lower = inside[len(inside) // 2 :]
        assert 0.8 * flesh < lower.max() < 1.2 * flesh
        assert 0.5 * lower.max() < inside[-1] < 0.9 * lower.max()
        assert np.abs(np.diff(lower)).max() < 0.35 * lower.max()  # of a face of 260 pixels


def test_a_tongue_lies_below_the_dark(quiet_renderer: MeshRenderer) -> None:
    goal, head = inside_of(quiet_renderer, 0.2)
    light = interior.Skin(np.array(SKIN, np.float32), 1.0, 1.0, np.zeros((0, 0), np.float32))
    drawn = quiet_renderer.interior.draw(goal, head, interior.Mouth(0.2), light)
    assert drawn is not None
    x = round(float(goal[mesh.LIP_INNER_TOP, 0])) - drawn.box.x
    column = drawn.bgr[:, x][drawn.cover[:, x] > 0.9] @ palette.GREY
    dark = int(column[len(column) // 4 : -2].argmin()) + len(column) // 4
    assert (column[dark:] > 1.5 * column[dark]).sum() > 0.3 * len(column)
    assert (column[dark + 1 : -2] < 0.8 * column.max()).all()  # and is no row of teeth


def test_a_grey_template_stays_grey(silent: Drawn, quiet_renderer: MeshRenderer) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(silent.frames[0], cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    after = quiet_renderer.render(grey, 0, plan.Target(0.2, 0.0))
    assert (after != grey).any()
    assert np.ptp(after.astype(int), axis=2).max() <= 1


def test_teeth_with_dark_below_them_are_told_from_teeth_alone(talking: Drawn) -> None:
    wide = int(talking.openings.argmax())
    assert own_inside.filled(talking.frames[wide], talking.points[wide]) < own_inside.DARK
    full = talking.frames[wide].copy()
    fill(full, talking.points[wide, mesh.LIP_INNER, :2], TEETH)
    assert own_inside.filled(full, talking.points[wide]) > own_inside.DARK


# ------------------------------------------------------------------ own mouths


def test_a_template_that_says_its_own_words_is_left_in_order(talking: Drawn, own_renderer: MeshRenderer) -> None:
    followed = own_renderer.tracks
    wide = followed.width - followed.rest_width
    asked = own_renderer.plan(followed.opening, wide, np.arange(80))
    template = own_renderer.materials.mouths.frame[asked.mouths[:, 0]]
    assert (np.abs(template - np.arange(80)) <= 2).mean() > 0.9
    for k in (10, 41, 66):
        after = own_renderer.render(talking.frames[k], k, asked[k]).astype(float)
        assert np.abs(after - talking.frames[k]).mean() < 1.0


def test_other_words_are_said_with_own_mouths(talking: Drawn, own_renderer: MeshRenderer) -> None:
    wanted = np.minimum(speechlike(80, seed=9), 0.18)
    asked = own_renderer.plan(wanted, np.zeros(80, np.float32), np.arange(80))
    light, dark = [], []
    for k in range(0, 80, 4):
        after = own_renderer.render(talking.frames[k], k, asked[k])
        inside = cv2.cvtColor(warp.around(talking.points[k, mesh.LIP_OUTER, :2], 6).cut(after), cv2.COLOR_BGR2GRAY)
        light.append((inside > 185).sum())
        dark.append(wanted[k])
    assert np.corrcoef(light, dark)[0, 1] > 0.9  # the wider, the more teeth


def test_silence_is_calm_with_own_mouths(own_renderer: MeshRenderer) -> None:
    nothing = np.zeros(80, np.float32)
    path = own_renderer.plan(nothing, nothing, np.arange(80)).mouths[:, 0]
    frame = own_renderer.materials.mouths.frame[path]
    assert own_renderer.tracks.opening[frame].max() < 0.02
    steps = np.diff(frame)
    assert (np.abs(steps) > 2).mean() < 0.05
    assert ((steps[1:] * steps[:-1]) < 0).sum() <= 1  # not to and fro


def test_single_closures_are_kept(own_renderer: MeshRenderer) -> None:
    wanted = np.full(60, 0.12, np.float32)
    wanted[[15, 30, 31, 45]] = 0
    asked = own_renderer.plan(wanted, np.zeros(60, np.float32), np.arange(60))
    assert (asked.opening[wanted == 0] == 0).all()


def test_nobody_is_lent_another_ones_mouth(model: FaceModel) -> None:
    """Two people, and the first once more: too briefly to learn from, but she is known already."""
    one, other = draw(model, speechlike(60)), draw(model, speechlike(60, seed=4), lips=(170, 80, 80))
    shots = [(one, slice(0, 50)), (other, slice(0, 60)), (one, slice(50, 60))]
    film = Drawn(
        np.concatenate([of.points[part] for of, part in shots]),
        np.ones(120, bool),
        [frame for of, part in shots for frame in of.frames[part]],
        np.concatenate([of.openings[part] for of, part in shots]),
        cast=(0,) * 50 + (1,) * 60 + (0,) * 10,
    )
    followed = tracks.follow(film, model.mesh.vertices)
    alone = follow(one, model)
    assert [person.kind for person in followed] == [tracks.Kind.TALKING] * 2
    assert (followed[0].strength[film.person == 0] == 1).all()  # nothing fades at a cut
    assert not followed[0].strength[film.person == 1].any()
    assert np.abs(followed[0].shape[:45] - alone.shape[:45]).max() < 2e-3
    known = prepare(followed, film.frames, model)
    whole = cast.Cast(film, followed, known, model.mesh)
    wanted = speechlike(240, seed=8)
    order = np.concatenate([np.arange(120), np.arange(119, -1, -1)])
    script = whole.plan(lambda person: (wanted, 0 * wanted), order)
    assert [len(part) for part in script.plans] == [50, 60, 20, 60, 50]
    for k in range(0, 240, 4):
        index = int(order[k])
        person, target = film.person[index], script.target(k)
        donors = known[person].mouths.frame[[mouth for mouth, _ in (*target.pictures, *target.shapes)]]
        assert len(donors)
        assert (film.person[donors] == person).all()
        made = whole.render(film.frames[index], index, target)
        ring = np.round(film.points[index, mesh.LIP_OUTER, :2]).astype(np.int32)
        mask = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [ring], 1)
        blue, red = (made[mask > 0][:, channel].astype(int) for channel in (0, 2))
        assert not ((blue - red > 40) if person == 0 else (red - blue > 80)).any()  # skin has 70
    briefly = script.target(115)  # the last shot is too short for mouths of its own
    assert all(known[0].mouths.frame[mouth] < 120 for mouth, _ in briefly.pictures)


def test_no_mouth_goes_on_across_a_cut(model: FaceModel, talking: Drawn) -> None:
    """The same person after a jump cut: the next frame of the file is not the next moment."""
    film = replace(talking, cast=(0,) * 80)
    (followed,) = tracks.follow(film, model.mesh.vertices)
    own = prepare([followed], film.frames, model)[0].mouths
    assert np.diff(mouths.moments(own, followed)).max() == 1
    cut = replace(followed, shot=np.repeat(np.int32([0, 1]), 40))
    assert np.diff(mouths.moments(own, cut))[39] > plan.FADE + plan.FADE_MORE


def test_jumps_are_faded() -> None:
    template = np.arange(50, dtype=np.int32)
    path = np.concatenate([np.arange(5, 15), np.arange(30, 40)]).astype(np.int32)
    unlike, alike = (lambda one, other: plan.APART), (lambda one, other: 0.0)
    pairs, blend = plan.fade_jumps(path, template, lambda k, mouth: 0.0, unlike)
    fading = np.flatnonzero(pairs[:, 1] >= 0)
    assert fading.tolist() == [8, 9, 10, 11]
    assert (np.diff(blend[fading]) > 0).all()
    assert pairs[9].tolist() == [14, 29]
    assert pairs[11].tolist() == [16, 31]  # both go on in their own time
    assert plan.fade_jumps(path[:10], template, lambda k, mouth: 0.0, unlike)[1].max() == 0
    # The first stretch is open, the second shut; the lips shall meet from output frame 10 on.
    shut = plan.fade_jumps(path, template, lambda k, mouth: 20.0 * ((k >= 10) != (mouth >= 25)), unlike)[1]
    assert shut[[8, 9]].max() < 1e-6
    assert shut[[10, 11]].min() > 1 - 1e-6
    # Mouths that look alike take longer, as far as their stretches are long enough.
    longer = plan.fade_jumps(path, template, lambda k, mouth: 0.0, alike)[0]
    assert np.flatnonzero(longer[:, 1] >= 0).tolist() == list(range(6, 14))


def test_a_long_path_in_blocks_is_the_short_one(own_renderer: MeshRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = mouths.Chooser(own_renderer.materials.mouths, own_renderer.tracks, own_renderer._residual)
    wanted, frames = speechlike(400, seed=4), np.arange(400) % 80
    wide = np.full(400, own_renderer.tracks.rest_width, np.float32)
    whole = chooser.choose(wanted, wide, frames)
    monkeypatch.setattr(mouths, "BLOCK", 90)
    assert (chooser.choose(wanted, wide, frames) == whole).mean() > 0.97


def test_a_plan_of_the_begin_is_the_begin_of_the_plan(
    own_renderer: MeshRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the first frames can be painted while nothing is known of the last ones; also behind a cut."""
    monkeypatch.setattr(mouths, "BLOCK", 100)
    for seed, first in ((4, 0), (5, 0), (6, 30), (7, 150)):
        wanted, frames = speechlike(500, seed=seed), np.arange(500) % 80
        edge = next(edge for edge in (mouths.LEAD, mouths.LEAD + 100) if edge > first) - first
        known = edge + mouths.OVERLAP + 1
        whole = own_renderer.plan(wanted, 0.1 * wanted, frames, first)
        begun = own_renderer.plan(wanted[:known], 0.1 * wanted[:known], frames[:known], first)
        certain = edge - plan.REACH
        assert certain > 30
        assert [begun.target(k) for k in range(certain)] == [whole.target(k) for k in range(certain)]
        assert len(set(whole.mouths[:certain, 0].tolist())) > 10


def test_mouths_are_kept_within_the_budget(talking: Drawn, model: FaceModel) -> None:
    followed = follow(talking, model)
    everything = mouths.frames_wanted(followed, SIDE, SIDE)
    assert len(everything) == 80
    one = mouths.hull_box(talking.points[0], UNIT)
    few = mouths.frames_wanted(followed, SIDE, SIDE, budget=55 * one.width * one.height * 3)
    assert 0 < len(few) <= 55
    assert (np.diff(few) == 1).mean() > 0.9  # whole stretches


# ------------------------------------------------------------------ the same everywhere


@pytest.mark.parametrize("kind", ["silent", "talking"])
def test_another_process_would_give_the_same_bytes(
    kind: str, request: pytest.FixtureRequest, model: FaceModel, tmp_path: Path
) -> None:
    drawn: Drawn = request.getfixturevalue(kind)
    one: MeshRenderer = request.getfixturevalue("quiet_renderer" if kind == "silent" else "own_renderer")
    materials.save([one.materials], tmp_path / "materials.npz")
    (kept,) = materials.load(tmp_path / "materials.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["materials.npz"]
    other = renderer_of(drawn, model, kept)
    wanted, frames = speechlike(30, seed=3), np.arange(30)
    asked = one.plan(wanted, 0.1 * wanted, frames)
    np.savez(tmp_path / "plan.npz", **asked.arrays())
    with np.load(tmp_path / "plan.npz") as stored:
        again = plan.Plan(**stored)
    assert len(again) == 30
    for k in (29, 3, 14):  # in any order
        assert np.array_equal(
            one.render(drawn.frames[k], k, asked[k]), other.render(drawn.frames[k], k, again.target(k))
        )


def test_materials_of_another_version_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", version=np.int32(0))
    with pytest.raises(ValueError, match=r"old\.npz"):
        materials.load(tmp_path / "old.npz")


def test_plans_are_checked(quiet_renderer: MeshRenderer) -> None:
    three = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="as many"):
        quiet_renderer.plan(three, np.zeros(2, np.float32), np.arange(3))
    with pytest.raises(ValueError, match=r"0\.\.29"):
        quiet_renderer.plan(three, three, np.array([0, 1, 30]))
    assert len(quiet_renderer.plan(three[:0], three[:0], np.arange(0))) == 0


# ------------------------------------------------------------------ what the landmarker sees


@pytest.fixture(scope="module")
def painting(model: FaceModel) -> Drawn:
    picture = cv2.imread(str(PAINTING))
    found = model.detect(picture, thorough=True)[0]
    points = model.landmarks(picture, region_of_detection(found)).points
    points = model.landmarks(picture, region_of_points(points)).points
    return Drawn(points[None], np.ones(1, bool), [picture], np.zeros(1, np.float32))


def test_a_painting_opens_its_mouth_as_far_as_asked(painting: Drawn, model: FaceModel) -> None:
    renderer = renderer_of(painting, model)
    drawn = renderer.materials.calibration.drawn_opening
    assert (np.diff(drawn) >= 0).all()
    wanted = np.float32([0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.2])
    asked = renderer.plan(wanted, 0 * wanted, np.zeros(8, np.int32))
    seen = []
    for k in range(8):
        after = renderer.render(painting.frames[0], 0, asked[k])
        points = model.landmarks(after, region_of_points(painting.points[0])).points
        seen.append(measure.of_pixels(points[None])[0][0])
    assert seen[0] < 0.02
    assert np.corrcoef(wanted, seen)[0, 1] > 0.97
    assert np.polyfit(wanted, seen, 1)[0] == pytest.approx(1, abs=0.2)


def test_a_neutral_calibration_changes_nothing() -> None:
    opening, width = np.float32([0, 0.1, 0.2]), np.float32([0.05, 0, -0.05])
    assert all(np.allclose(*pair) for pair in zip(Calibration().drive(opening, width), (opening, width), strict=True))
