import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from cest.cli import main
from cest.data import load_clips, read_frame
from cest.data.synthetic import AppearanceRanges, SyntheticClips, write_shards
from cest.data.synthetic.camera import Camera, motion_kernel
from cest.data.synthetic.chart import FaceChart
from cest.data.synthetic.complexion import Complexion, lightness
from cest.data.synthetic.head import Head
from cest.data.synthetic.light import Light, SelfShadow
from cest.data.synthetic.skin import SkinPainter
from cest.face_model import load_face_model
from cest.geometry import ambient_illumination, project, sh_basis, to_pixels
from cest.lighting import directional_light
from cest.rendering import render

SIZE = 96


def picture_of(encoded: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded["bytes"])))


@pytest.fixture(scope="module")
def clips() -> SyntheticClips:
    return SyntheticClips(40, seed=3, frames=2, size=SIZE)


@pytest.fixture(scope="module")
def lambertian() -> SyntheticClips:
    return SyntheticClips(
        8, seed=5, frames=2, size=SIZE, appearance=AppearanceRanges.lambertian(glasses=1.0)
    )


# -- rows ----------------------------------------------------------------------------------------


def test_row_has_schema_and_shapes(clips):
    row = clips[0]
    assert row["clip_id"] != clips[1]["clip_id"]
    assert [picture_of(frame).shape for frame in row["frames"]] == [(SIZE, SIZE, 3)] * 2
    assert all(Image.open(io.BytesIO(frame["bytes"])).format == "JPEG" for frame in row["frames"])
    assert [points.shape for points in row["landmarks"]] == [(68, 2)] * 2
    assert [picture_of(mask).shape for mask in row["masks"]] == [(SIZE, SIZE)] * 2
    assert row["viewpoint"].shape == (2, 7)
    assert row["shape_coefficients"].shape == (2, clips.face_model.n_coefficients)
    assert row["illumination"].shape == (2, 9)
    assert picture_of(row["reflectance_map"]).shape == (256, 256, 3)
    assert len(row["visibility"]) == 2
    image, _, mask = read_frame(row, 1)  # the loader's own checks
    assert image.shape == (SIZE, SIZE, 3) and mask.max() == 1


def test_row_is_a_function_of_seed_and_index(clips):
    again = SyntheticClips(40, seed=3, frames=2, size=SIZE)
    other = SyntheticClips(40, seed=4, frames=2, size=SIZE)
    backwards = [again[i] for i in (2, 1)][::-1]
    for index, row in zip((1, 2), backwards):
        assert_same(clips[index], row)
    assert clips[1]["frames"][0]["bytes"] != other[1]["frames"][0]["bytes"]
    assert_same(clips[-1], clips[39])
    with pytest.raises(IndexError):
        clips[40]


def test_truth_changes_nothing_else(clips):
    plain = SyntheticClips(40, seed=3, frames=2, size=SIZE, truth=False)[4]
    assert set(plain) == {"clip_id", "video_id", "frames", "landmarks", "masks"}
    assert_same(plain, {name: clips[4][name] for name in plain})


def test_processes_get_settings_not_meshes(clips):
    packed = pickle.dumps(clips)
    assert len(packed) < 10_000
    assert_same(pickle.loads(packed)[3], clips[3])


def test_threads_agree(clips):
    alone = [clips[i] for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(clips.__getitem__, range(8))):
            assert_same(one, other)


def assert_same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        if isinstance(value, np.ndarray) or name == "landmarks":
            np.testing.assert_array_equal(value, other[name])
        else:
            assert value == other[name], name


# -- truth ---------------------------------------------------------------------------------------


def truth_of(clips: SyntheticClips, index: int) -> tuple:
    row = clips[index]
    albedo = torch.from_numpy(picture_of(row["reflectance_map"]).copy()).permute(2, 0, 1) / 255
    numbers = (row[name] for name in ("shape_coefficients", "viewpoint", "illumination"))
    return albedo, *(torch.from_numpy(value) for value in numbers)


def test_lambertian_frames_are_what_the_renderer_makes_of_the_truth(lambertian):
    model = lambertian.face_model
    for index in range(4):
        albedo, coefficients, viewpoint, illumination = truth_of(lambertian, index)
        rendering = render(
            model, model.vertices(coefficients), viewpoint, albedo.expand(2, -1, -1, -1),
            illumination, (SIZE, SIZE),
        )  # fmt: skip
        scene = lambertian.scene(index)
        expected = rendering.image.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        seen = scene.mask > 0
        assert seen.sum() > 500
        # float32: normals summed in another order differ by a few 1e-6.
        np.testing.assert_allclose(scene.picture[seen], expected[seen], atol=1e-5)
        frames = np.stack([picture_of(frame) for frame in lambertian[index]["frames"]])
        np.testing.assert_allclose(frames[seen] / 255, expected[seen], atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("breach", ["self_shadow", "highlights"])
def test_breaches_of_the_model_show(breach):
    ranges = AppearanceRanges.lambertian()
    broken = AppearanceRanges.lambertian(**{breach: 1.0})
    kept, changed = (
        SyntheticClips(4, seed=1, frames=1, size=SIZE, appearance=r).scene(0)
        for r in (ranges, broken)
    )
    np.testing.assert_array_equal(kept.mask, changed.mask)
    difference = (changed.picture - kept.picture)[kept.mask > 0]
    assert np.abs(difference).max() > 0.02
    # Shadows darken, highlights brighten, and nothing does both.
    assert (difference <= 1e-6).all() if breach == "self_shadow" else (difference >= -1e-6).all()


def test_landmarks_are_projected_vertices(clips):
    model = clips.face_model
    for index in range(3):
        _, coefficients, viewpoint, _ = truth_of(clips, index)
        points = project(model.vertices(coefficients)[:, model.landmarks], viewpoint)
        expected = to_pixels(points[..., :2], SIZE, SIZE).numpy()
        np.testing.assert_allclose(clips[index]["landmarks"], expected, atol=1e-4)


@pytest.mark.parametrize("length", [0.4, 1.0, 2.0, 3.5, 4.0, 6.9, 14.0])
def test_motion_blur_moves_nothing(length):
    for angle in np.linspace(0, np.pi, 13):
        kernel = motion_kernel(length, angle)
        side = len(kernel)
        assert side % 2 == 1 and kernel.sum() == pytest.approx(1, rel=1e-5)
        offsets = np.arange(side) - side // 2  # from the pixel that cv2 anchors a kernel at
        assert abs((kernel.sum(0) * offsets).sum()) < 1e-5
        assert abs((kernel.sum(1) * offsets).sum()) < 1e-5
        assert (length < 2) or (kernel > 0).sum() > 1


def test_pictures_may_be_larger_than_the_grain():
    camera = Camera.random(np.random.default_rng(0))
    grey = np.full((800, 800, 3), 0.5, np.float32)
    encoded = camera.photograph(grey, np.random.default_rng(1))
    assert np.asarray(Image.open(io.BytesIO(encoded))).shape == (800, 800, 3)


def test_crop_is_sized_and_placed_as_training_crops_are(clips):
    boxes = np.stack(
        [np.ptp(points, axis=0) for i in range(10) for points in clips[i]["landmarks"]]
    )
    ratio = SIZE / boxes.max(1)
    assert ((ratio > 1.54) & (ratio < 1.76)).all()
    for i in range(10):
        for points in clips[i]["landmarks"]:
            middle = (points.min(0) + points.max(0)) / 2
            assert (np.abs(middle - SIZE / 2) < 0.05 * SIZE).all()  # five deviations


def test_masks_are_the_face_less_what_is_before_it(lambertian):
    model = lambertian.face_model
    bare = AppearanceRanges.lambertian(
        glasses=0.0, hand=0.0, medical_mask=0.0, hair=0.0, padded=0.0
    )
    free = SyntheticClips(8, seed=5, frames=2, size=SIZE, appearance=bare)
    hidden = 0
    for index in range(4):
        _, coefficients, viewpoint, light = truth_of(free, index)
        coverage = render(
            model, model.vertices(coefficients), viewpoint, None, light, (SIZE, SIZE)
        ).coverage[:, 0].numpy() > 0  # fmt: skip
        mask = free.scene(index).mask > 0
        assert not (mask & ~coverage).any()
        # Bare faces are hidden by their own ears and necks only.
        assert mask.sum() > 0.9 * coverage.sum()
        worn = lambertian.scene(index).mask > 0
        assert not (worn & ~coverage).any()
        hidden += (mask & ~worn).sum()
    assert hidden > 500  # by glasses and hair


def test_visibility_is_of_texels_that_the_mask_shows(lambertian):
    scene = lambertian.scene(1)
    assert set(np.unique(scene.visibility)) <= {0, 255}
    seen = (scene.visibility > 0).mean((1, 2))
    assert ((seen > 0.1) & (seen < 0.9)).all()
    turned = scene.viewpoint[:, 1:4].norm(dim=1).argmax()
    straight = scene.viewpoint[:, 1:4].norm(dim=1).argmin()
    assert turned == straight or seen[turned] < seen[straight] + 0.1


# -- what is drawn from what -----------------------------------------------------------------------


def test_skin_tones_are_spread_evenly():
    rng = np.random.default_rng(0)
    people = [Complexion.random(rng, (24.0, 80.0), bool(k % 2)) for k in range(1000)]
    values = np.array([person.lightness for person in people])
    counts, _ = np.histogram(values, bins=7, range=(24, 80))
    # Binomial with n = 1000, p = 1/7: within four deviations.
    assert np.abs(counts - 1000 / 7).max() < 4 * np.sqrt(1000 / 7 * 6 / 7)
    # And the paint has the lightness that was asked for, save for its blood.
    painted = np.stack([person.colour() for person in people])
    painted = lightness(((painted + 0.055) / 1.055) ** 2.4)  # sRGB -> linear light
    assert np.abs(painted - values).mean() < 3
    assert np.corrcoef(painted, values)[0, 1] > 0.99


def test_paint_is_an_albedo_with_features():
    model = load_face_model("open", level=0)
    chart = FaceChart.build(model, 128)
    painter = SkinPainter(chart)
    rng = np.random.default_rng(0)
    for masculine in (True, False):
        person = Complexion.random(rng, (60.0, 80.0), masculine)
        albedo = painter.paint(person, rng)
        assert albedo.shape == (128, 128, 3) and albedo.min() > 0 and albedo.max() < 1
        cheek = albedo[(painter.cheeks > 0.5) & (painter.beard_map < 0.01)].mean()
        brow = np.abs(chart.brows[0].above) < 0.01
        brow &= (chart.brows[0].along > 0.3) & (chart.brows[0].along < 0.7)
        assert albedo[brow].mean() < cheek
        assert albedo[painter.ball > 0].min() < 0.1  # pupils
        skin = painter.is_skin > 0.99
        asymmetry = np.abs(albedo - albedo[:, ::-1])[skin & skin[:, ::-1]].mean()
        assert asymmetry > 0.005


def test_light_is_never_negative_and_as_bright_as_asked_for():
    rng = np.random.default_rng(0)
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
    for _ in range(50):
        light = Light.random(rng, 3, exposure=0.8)
        shading = light.illumination @ sh_basis(directions).T
        assert shading.min() > -0.02  # between the directions that were looked at
        assert 0.5 < shading[:, directions[:, 2] > 0.2].mean() < 1.1
        torch.testing.assert_close(light.direction.norm(dim=1), torch.ones(3))


def test_self_shadow_follows_the_light(face_model):
    head = Head(face_model)
    shadow = SelfShadow(face_model, head.template, head.triangles)
    straight = torch.eye(3)[None]
    from_front = shadow.arriving(directional_light((0, 0, 1), 1.0, 0.2)[None], straight)[0]
    ambient = shadow.arriving(ambient_illumination()[None], straight)[0]
    tip, throat = (
        face_model.landmarks[30],
        face_model.n_vertices
        + int((head.template - torch.tensor([0, -0.8, -0.4])).norm(dim=1).argmin()),
    )
    assert ambient[tip] > 0.9
    assert ambient[throat] < ambient[tip] - 0.05  # under the chin
    # Turned by half a turn with the light, nothing changes.
    around = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])[None]
    behind = directional_light((0, 0, -1), 1.0, 0.2)[None]
    torch.testing.assert_close(shadow.arriving(behind, around)[0], from_front, atol=0.03, rtol=0)


def test_head_follows_the_face(face_model):
    head = Head(face_model)
    wide = face_model.mean * torch.tensor([1.1, 1.0, 1.0])
    grown = head.around(wide[None])[0] - head.template
    ears = head.template[:, 0] > 0.75
    ears &= (head.template[:, 1] > 0) & (head.template[:, 1] < 0.6)
    assert grown[ears, 0].mean() > 0.03
    shoulders = head.template[:, 1] < -2.2
    assert grown[shoulders].abs().max() == 0


# -- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"frames": 0}, {"size": 8}, {"length": -1}, {"seed": -1}]
)  # fmt: skip
def test_numbers_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SyntheticClips(**{"length": 1} | change)


@pytest.mark.parametrize(
    "change", [{"skin_lightness": (90.0, 20.0)}, {"yaw": 120.0}, {"glasses": 1.5}, {"identity": -1}]
)
def test_ranges_are_checked(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AppearanceRanges(**change)


def test_other_face_models_are_refused(face_model):
    class Other:
        name = "gnm"

    with pytest.raises(ValueError, match="open face model"):
        Head(Other())


# -- Parquet -------------------------------------------------------------------------------------


def test_shards_are_clip_sets_with_truth(tmp_path, monkeypatch):
    monkeypatch.setattr("cest.data.synthetic.shards.CLIPS_A_SHARD", 2)
    clips = SyntheticClips(5, seed=2, frames=2, size=64)
    shards = write_shards(clips, tmp_path, progress=False)
    assert [shard.name for shard in shards] == [f"clips-0000{k}-of-00003.parquet" for k in range(3)]
    rows = load_clips(str(tmp_path))
    assert len(rows) == 5
    assert rows[3]["clip_id"] == clips[3]["clip_id"]
    image, landmarks, mask = read_frame(rows[3], 1)
    np.testing.assert_array_equal(image, picture_of(clips[3]["frames"][1]))
    np.testing.assert_allclose(landmarks, clips[3]["landmarks"][1])
    np.testing.assert_array_equal(mask, picture_of(clips[3]["masks"][1]) > 127)

    import datasets

    truth = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=tmp_path / "c"
    )[4]
    np.testing.assert_array_equal(np.float32(truth["viewpoint"]), clips[4]["viewpoint"])
    np.testing.assert_array_equal(np.float32(truth["illumination"]), clips[4]["illumination"])
    np.testing.assert_array_equal(
        np.float32(truth["shape_coefficients"]), clips[4]["shape_coefficients"]
    )
    np.testing.assert_array_equal(
        np.asarray(truth["reflectance_map"]), picture_of(clips[4]["reflectance_map"])
    )


def test_shards_that_are_there_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("cest.data.synthetic.shards.CLIPS_A_SHARD", 1)
    clips = SyntheticClips(3, frames=1, size=64, truth=False)
    first, second, third = write_shards(clips, tmp_path, progress=False)
    before = {shard: (shard.stat().st_mtime_ns, shard.read_bytes()) for shard in (first, third)}
    lost = second.read_bytes()
    second.unlink()
    write_shards(clips, tmp_path, progress=False)
    assert second.read_bytes() == lost
    assert {s: (s.stat().st_mtime_ns, s.read_bytes()) for s in (first, third)} == before
    with pytest.raises(ValueError, match="other settings"):
        write_shards(SyntheticClips(3, seed=1, frames=1, size=64, truth=False), tmp_path)
    pale = AppearanceRanges(skin_lightness=(70, 80))
    with pytest.raises(ValueError, match="other settings"):
        write_shards(SyntheticClips(3, frames=1, size=64, appearance=pale, truth=False), tmp_path)
    (tmp_path / "synthetic.json").write_text('{"length"')
    with pytest.raises(ValueError, match="is damaged"):
        write_shards(clips, tmp_path)


def test_command_line(tmp_path, capsys):
    arguments = ["synthesize", "-o", str(tmp_path), "--clips", "2", "--frames", "1", "--size", "64"]
    assert main([*arguments, "--no-truth"]) == 0
    assert json.loads((tmp_path / "synthetic.json").read_text())["truth"] is False
    assert len(load_clips(str(tmp_path))) == 2
    assert main(arguments) == 1
    assert "other settings" in capsys.readouterr().err
    assert main([*arguments, "--no-truth", "--unfamiliar"]) == 1  # another appearance
    assert main(["synthesize", "-o", str(tmp_path), "--clips", "0"]) == 1
    assert "clips" in capsys.readouterr().err
