"""Alignment on constructed shapes: the answer is known, and it gets worse when it should."""

import math

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from cest.evaluation.alignment import Motion, TriangleSurface, icp, procrustes
from cest.evaluation.dense import dense_nme, face_vertices, interocular_distance, vertex_error
from cest.face_model import FaceModel


def random_motion(rng: np.random.Generator, degrees: float, length: float, scale: float = 1.0):
    axis, direction = rng.normal(size=(2, 3))
    rotation = Rotation.from_rotvec(math.radians(degrees) * axis / np.linalg.norm(axis))
    return Motion(scale, rotation.as_matrix(), length * direction / np.linalg.norm(direction))


@pytest.fixture(scope="module")
def mean(face_model: FaceModel) -> np.ndarray:
    return face_model.mean.double().numpy()


@pytest.fixture(scope="module")
def triangles(face_model: FaceModel) -> np.ndarray:
    return face_model.triangles.numpy()


def test_motions_compose_and_invert():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, 3))
    a, b = random_motion(rng, 40, 1.0, 1.5), random_motion(rng, 70, 2.0, 0.8)
    np.testing.assert_allclose(a.then(b)(points), b(a(points)), atol=1e-12)
    np.testing.assert_allclose(a.inverse(a(points)), points, atol=1e-12)
    assert a.angle == pytest.approx(math.radians(40))
    tiny = random_motion(rng, 1e-6, 0.0)
    assert tiny.angle == pytest.approx(math.radians(1e-6), rel=1e-6)


@pytest.mark.parametrize("scale", [False, True])
def test_procrustes_recovers_a_motion_and_never_mirrors(scale):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(30, 3))
    true = random_motion(rng, 130, 3.0, 1.7 if scale else 1.0)
    found = procrustes(points, true(points), scale)
    np.testing.assert_allclose(found(points), true(points), atol=1e-12)
    mirrored = procrustes(points, points * (-1, 1, 1), scale)
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1)
    assert np.abs(mirrored(points) - points * (-1, 1, 1)).max() > 0.1


def test_procrustes_without_scale_does_not_scale():
    points = np.random.default_rng(2).normal(size=(30, 3))
    assert procrustes(points, 2 * points, scale=False).scale == 1
    assert procrustes(points, 2 * points, scale=True).scale == pytest.approx(2)


def test_nearest_point_of_a_triangle_by_hand():
    surface = TriangleSurface(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    points = np.array([[0.25, 0.25, 2.0], [0.5, -1, 0], [-1, -1, 1]])
    places, normals, rim = surface.nearest(points)
    np.testing.assert_allclose(places, [[0.25, 0.25, 0], [0.5, 0, 0], [0, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(normals, [[0, 0, 1]] * 3)
    assert rim.tolist() == [False, True, True]


def test_nearest_points_are_the_nearest(mean, triangles):
    """Points up to 5 mm off the surface, against a search over every triangle."""
    rng = np.random.default_rng(3)
    corners = mean[triangles]
    on = corners[rng.choice(len(corners), 200)].mean(1)
    points = on + rng.uniform(-0.03, 0.03, size=(200, 3))
    truth = [
        np.linalg.norm(
            trimesh.triangles.closest_point(corners, np.repeat(p[None], len(corners), 0)) - p,
            axis=1,
        ).min()
        for p in points
    ]
    places, _, _ = TriangleSurface(mean, triangles).nearest(points)
    found = np.linalg.norm(places - points, axis=1)
    assert (found >= np.array(truth) - 1e-12).all()
    assert found.mean() < 1.01 * np.mean(truth)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("seed", range(3, 6))
def test_icp_recovers_a_motion_on_partial_overlap(face_model, mean, triangles, scale, seed):
    """From 15 degrees and 20 mm away; each side lacks a third that the other has."""
    true = random_motion(np.random.default_rng(seed), 15, 0.2)
    low = mean[triangles][:, :, 1].max(1) < 0.6  # the surface has no forehead
    skin = face_model.parts.numpy() == 0
    right = (mean[:, 0] > -0.25) & skin  # the points have no left cheek
    result = icp(TriangleSurface(mean, triangles[low]), true(mean[right]), scale)
    assert result.converged
    np.testing.assert_allclose(result.motion(mean), true(mean), atol=1e-6)
    assert result.residual < 1e-6
    assert 0.5 < result.overlap < 1


def test_icp_with_scale_recovers_the_scale(mean, triangles):
    true = random_motion(np.random.default_rng(5), 10, 0.1, scale=1.1)
    result = icp(TriangleSurface(mean, triangles), true(mean), scale=True)
    assert result.converged
    assert result.motion.scale == pytest.approx(1.1, abs=1e-6)
    rigid = icp(TriangleSurface(mean, triangles), true(mean), scale=False)
    assert rigid.motion.scale == 1
    assert rigid.residual > 10 * result.residual + 1e-3


def test_icp_says_when_it_did_not_converge(mean, triangles):
    surface = TriangleSurface(mean, triangles)
    true = random_motion(np.random.default_rng(6), 15, 0.2)
    assert not icp(surface, true(mean), iterations=2).converged
    nowhere = icp(surface, mean + np.array([50.0, 0, 0]), iterations=1)
    assert not nowhere.converged
    # A handful of points cannot determine a motion.
    assert not icp(surface, mean[:5]).converged


def test_icp_on_too_little_overlap_has_not_converged(mean, triangles, face_model):
    """A nose fits a whole face perfectly, and says nothing of where the rest of it is."""
    near = np.linalg.norm(mean - mean[face_model.landmarks[30]], axis=1) < 0.3
    nose = TriangleSurface(mean, triangles[near[triangles].all(1)])
    settled = icp(nose, mean, start=Motion.identity())
    assert settled.residual < 1e-6 and settled.iterations < 10
    assert settled.overlap < 0.3 and not settled.converged
    alone = icp(nose, mean[near], start=Motion.identity())
    assert alone.overlap > 0.3 and alone.converged


def test_dense_nme_of_known_errors(face_model, mean, triangles):
    ids = face_model.landmarks.numpy()
    region = mean[face_vertices(face_model)]

    apart = interocular_distance(mean[ids])

    def error(vertices, scale):
        return dense_nme(vertices, triangles, (vertices[ids], mean[ids]), region, apart, scale)

    moved = random_motion(np.random.default_rng(7), 50, 3.0)
    copy = error(moved(mean), False)
    assert copy.alignment.converged and copy.nme < 1e-4
    larger = 1.2 * mean
    assert error(larger, True).nme < 1e-4
    assert error(larger, False).nme > 1
    errors = [error(mean * (1, 1, flat), False).nme for flat in (1, 0.9, 0.8, 0.6)]
    assert errors == sorted(errors) and errors[1] > 0.1


def test_vertex_error_of_known_errors(face_model, mean):
    rng = np.random.default_rng(8)
    region = face_vertices(face_model)
    assert vertex_error(random_motion(rng, 50, 3.0)(mean), mean, face_model, False) < 1e-10
    assert vertex_error(1.2 * mean, mean, face_model, True) < 1e-10
    assert vertex_error(1.2 * mean, mean, face_model, False) > 1
    # Swapped vertices: the distance between them, by hand; alignment hardly moves for two.
    swapped = mean.copy()
    a, b = region[0], region[len(region) // 2]
    swapped[[a, b]] = swapped[[b, a]]
    apart = np.linalg.norm(mean[a] - mean[b])
    expected = 100 * 2 * apart / len(region) / interocular_distance(mean[face_model.landmarks])
    assert vertex_error(swapped, mean, face_model, False) == pytest.approx(expected, rel=0.1)
    # A mirrored face is the mean itself under the mirror map, and wrong without it.
    mirrored = mean * (-1, 1, 1)
    assert vertex_error(mirrored[face_model.mirror.numpy()], mean, face_model, False) < 1e-4
    assert vertex_error(mirrored, mean, face_model, False) > 10


def test_icp_flatters_where_the_correspondence_is_wrong(face_model, mean, triangles):
    """Vertices that slide over the surface: no dense error, but a true one."""
    ids = face_model.landmarks.numpy()
    region = mean[face_vertices(face_model)]
    mirrored = (mean * (-1, 1, 1)).copy()
    slid = mean[face_model.mirror.numpy()]
    np.testing.assert_allclose(slid, mirrored, atol=1e-6)
    flipped = triangles[:, ::-1]
    apart = interocular_distance(mean[ids])
    assert dense_nme(slid, flipped, (mean[ids], mean[ids]), region, apart, False).nme < 1e-3
    assert vertex_error(slid, mean, face_model, False) > 10


def test_the_face_region_is_skin_and_lips_near_the_nose(face_model, mean):
    region = face_vertices(face_model)
    assert set(face_model.parts[region].tolist()) == {0, 2}
    mirrored = np.sort(face_model.mirror.numpy()[region])
    np.testing.assert_array_equal(mirrored, np.sort(region))
    tip = mean[face_model.landmarks[30]]
    assert np.linalg.norm(mean[region] - tip, axis=1).max() <= 0.95
    assert 0.6 < len(region) / len(mean) < 1
