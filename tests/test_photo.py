"""Reading photos: every mode and orientation right, every bad input one clear sentence."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from cest.photo import MAX_PIXELS, PhotoError, read_photo


@pytest.fixture
def picture() -> np.ndarray:
    """(40, 64, 3) uint8: smooth, and different in every orientation."""
    y, x = np.mgrid[:40, :64]
    return np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that claims a size but has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 0) + b"IDAT"


def test_an_array_and_an_image_and_a_file_are_the_same(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    for given in (picture, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(read_photo(given), picture)


UNDO = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}
"""EXIF orientation -> what a camera held that way stores of an upright picture."""


def stored(picture: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(UNDO[orientation](picture))


def image_of(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, values.shape[1::-1], values.tobytes())


def orientation_tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", UNDO)
def test_every_exif_orientation_gives_the_same_photo(picture, tmp_path, orientation):
    """The picture is stored as a camera held that way stores it; reading must undo that."""
    path = tmp_path / "photo.png"
    Image.fromarray(stored(picture, orientation)).save(path, exif=orientation_tag(orientation))
    np.testing.assert_array_equal(read_photo(path), picture)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", UNDO)
def test_every_orientation_of_a_tiff(picture, tmp_path, orientation, mode, compression):
    """Pillow turns a TIFF itself, and scrambles one that it maps into memory."""
    upright = {
        "L": picture[..., 0],
        "I;16": picture[..., 0].astype(np.uint16) * 257,
        "RGB": picture,
        "RGBA": np.concatenate([picture, 255 - picture[..., :1]], -1),
        "CMYK": np.concatenate([picture, picture[..., :1] // 2], -1),
    }[mode]
    path = tmp_path / "photo.tif"
    image = image_of(mode, stored(upright, orientation))
    image.save(path, exif=orientation_tag(orientation), compression=compression)
    np.testing.assert_array_equal(read_photo(path), read_photo(image_of(mode, upright)))


ASCII, LONG, RATIONAL, UNDEFINED, FLOAT = 2, 4, 5, 7, 11
"""EXIF's types."""


def exif_with(tag: int, kind: int, data: bytes) -> bytes:
    """Orientation 6 and one more tag, of any type; more than 4 bytes of data stand after both."""
    size = {ASCII: 1, LONG: 4, RATIONAL: 8, UNDEFINED: 1, FLOAT: 4}[kind]
    turned = struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
    here = data if len(data) == 4 else struct.pack("<I", 8 + 2 + 2 * 12 + 4)
    other = struct.pack("<HHI", tag, kind, len(data) // size) + here
    entries = b"".join(sorted([turned, other]))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + data


@pytest.mark.parametrize(
    ("tag", "kind", "data"),
    [
        (0x011A, ASCII, b"72 dpi.\0"),  # XResolution, a RATIONAL
        (0x011A, UNDEFINED, b"72 dpi.\0"),
        (0x0128, RATIONAL, struct.pack("<II", 2, 1)),  # ResolutionUnit, a SHORT
        (0x0128, LONG, struct.pack("<I", 70_000)),
        (0x0100, FLOAT, struct.pack("<f", 64.5)),  # ImageWidth, a SHORT or LONG
        (0x0100, ASCII, b"64 px..\0"),
    ],
)
@pytest.mark.parametrize("kind_of_file", ["png", "jpg", "webp"])
def test_a_mistyped_tag_does_not_keep_a_photo_from_being_turned(
    picture, tmp_path, tag, kind, data, kind_of_file
):
    path = tmp_path / f"photo.{kind_of_file}"
    image = Image.fromarray(stored(picture, 6))
    image.save(path, exif=exif_with(tag, kind, data), quality=95)
    off = np.abs(read_photo(path).astype(int) - picture)
    assert off.shape == picture.shape and off.mean() < 3


def test_exif_that_cannot_be_read_is_ignored(picture, tmp_path, caplog):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path, exif=b"Exif\0\0This is no EXIF at all.")
    np.testing.assert_array_equal(read_photo(path), picture)
    assert "EXIF cannot be read" in caplog.text


def test_greyscale_and_palette(picture, tmp_path):
    grey = Image.fromarray(picture).convert("L")
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_photo(tmp_path / "grey.png"), np.repeat(np.asarray(grey)[..., None], 3, -1)
    )
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_photo(tmp_path / "palette.png"), np.asarray(palette.convert("RGB"))
    )
    bilevel = grey.convert("1")
    np.testing.assert_array_equal(read_photo(bilevel)[..., 0], np.asarray(bilevel) * 255)


def test_transparency_is_laid_over_white(picture, tmp_path):
    alpha = np.full((*picture.shape[:2], 1), 128, np.uint8)
    alpha[:, :20], alpha[:, 40:] = 0, 255
    Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / "rgba.png")
    got = read_photo(tmp_path / "rgba.png").astype(int)
    assert (got[:, :20] == 255).all()
    np.testing.assert_array_equal(got[:, 40:], picture[:, 40:])
    half = picture[:, 20:40] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(got[:, 20:40] - half).max() <= 1
    grey = np.concatenate([picture[..., :1], alpha], -1)
    np.testing.assert_array_equal(read_photo(Image.fromarray(grey, "LA")), read_photo(grey))


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 16, 32))
    image.save(tmp_path / "p.png", transparency=0)
    got = read_photo(tmp_path / "p.png")
    assert (got[:, :16] == 255).all()
    assert (got[:, 16:] == (200, 10, 10)).all()


def test_cmyk(picture, tmp_path):
    """Pillow's own conversion, within what JPEG changes of a smooth picture."""
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_photo(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 6


def test_an_embedded_profile_is_converted_to_srgb(picture, tmp_path):
    """A profile with red and blue exchanged, so that ignoring it cannot go unseen."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    assert swapped != profile
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=swapped)
    got = read_photo(tmp_path / "a.png").astype(int)
    assert np.abs(got - picture[..., ::-1]).max() <= 2
    Image.fromarray(picture).save(tmp_path / "b.png", icc_profile=profile)
    assert np.abs(read_photo(tmp_path / "b.png").astype(int) - picture).max() <= 1


def test_a_broken_profile_is_ignored(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png", icc_profile=b"nonsense")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(picture, tmp_path, dtype):
    grey = picture[..., 0]
    image = Image.fromarray((grey.astype(np.uint16) * 257).astype(dtype))
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif")[..., 1], grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png")[..., 2], grey)


def test_sixteen_bit_colour(picture, tmp_path):
    """OpenCV writes it; the tests' only use of it here."""
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(read_photo(picture.astype(np.uint16) * 257), picture)


def test_floating_point(picture):
    np.testing.assert_array_equal(read_photo(picture / 255), picture)
    grey = Image.fromarray((picture[..., 0] / 255).astype(np.float32))
    np.testing.assert_array_equal(read_photo(grey)[..., 0], picture[..., 0])


def jpeg(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.tile(picture, (4, 4, 1))).save(data, "JPEG")
    return data.getvalue()


BAD = {
    "empty.jpg": lambda picture: b"",
    "text.jpg": lambda picture: b"This is a letter, not a picture.\n" * 20,
    "truncated.jpg": lambda picture: jpeg(picture)[: len(jpeg(picture)) // 2],
    "bomb.png": lambda picture: header_of_png(20_000, 20_000),
    "large.png": lambda picture: header_of_png(10_000, MAX_PIXELS // 10_000 + 1),
    "damaged.png": lambda picture: header_of_png(100, 100) + b"\0" * 50,
}
SAYS = {
    "empty.jpg": "is an empty file",
    "text.jpg": "not a picture",
    "truncated.jpg": "cut short",
    "bomb.png": "scale it down",
    "large.png": "scale it down",
    "damaged.png": "damaged",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(name, picture, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name](picture))
    with pytest.raises(PhotoError, match=SAYS[name]) as caught:
        read_photo(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_anywhere_is_refused(kind, picture, tmp_path):
    """Or read, where only what a picture can do without is missing."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind)
    whole, path, outcomes = data.getvalue(), tmp_path / "cut", set()
    for length in range(0, len(whole), max(len(whole) // 150, 1)):
        path.write_bytes(whole[:length])
        try:
            assert read_photo(path).shape == picture.shape
        except PhotoError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
            outcomes.add("damaged" in str(error))
    assert True in outcomes


@pytest.mark.parametrize("error", [struct.error("x"), zlib.error("x"), EOFError(), KeyError(1)])
def test_whatever_the_decoder_raises_is_damage(error, picture, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr("cest.photo.Image.Image.load", fail)
    with pytest.raises(PhotoError, match="is cut short or damaged"):
        read_photo(tmp_path / "a.png")


def test_a_failing_disk_is_not_a_damaged_photo(picture, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr("cest.photo.Image.open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_photo(tmp_path / "a.png")


def test_one_pixel_is_too_small(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(PhotoError, match=r"only 1 x 1 pixels"):
        read_photo(tmp_path / "dot.png")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(PhotoError, match="does not exist"):
        read_photo(tmp_path / "none.jpg")
    with pytest.raises(PhotoError, match="is a folder"):
        read_photo(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 5), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((20, 20, 3), np.int64),
        np.full((20, 20, 3), np.nan),
    ],
)
def test_arrays_that_are_no_picture(array):
    with pytest.raises(PhotoError):
        read_photo(array)


def test_a_postscript_file_is_no_photo(tmp_path, monkeypatch):
    """Pillow would run Ghostscript, which takes as long as the file tells it to."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it was run"))
    path = tmp_path / "holiday.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n"
    )
    with pytest.raises(PhotoError, match="is not a picture"):
        read_photo(path)
