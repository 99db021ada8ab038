"""Read a photograph, whatever it is stored as, into upright 8-bit sRGB."""

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

logger = logging.getLogger(__name__)

MAX_PIXELS = 80_000_000
"""Larger photos are refused from their header, before anything is decoded. Below this limit Pillow
does not warn either, and a photo is worked on at its full size."""
MIN_SIDE = 16
"""Pixels: a smaller picture cannot hold a face that could be reconstructed."""
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""What a folder is searched for. A file named outright may have any name and one of FORMATS."""

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF", "PPM"),
    *("JPEG2000", "TGA", "ICO"),
)
"""Formats that Pillow decodes by itself; for EPS and others it would start a program."""

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged data, from the header's parser as well as from the decoders."""

_ORIENTATION = 0x0112
"""EXIF's tag for how the camera was held."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Its value -> what puts the photo upright; for any other nothing does."""

Photo = str | os.PathLike[str] | Image.Image | np.ndarray


class PhotoError(ValueError):
    """A photo that cannot be used; the message is one sentence for the person who gave it."""


def read_photo(photo: Photo) -> np.ndarray:
    """Read a file, a Pillow image or an array.

    Returns (H, W, 3) uint8, sRGB: turned as EXIF says, transparency laid over white, an embedded
    colour profile converted to sRGB, 16-bit values scaled by 1 / 257. An array may be (H, W),
    (H, W, 1 | 2 | 3 | 4); uint8, uint16, or floating point in [0, 1]. Of an animation the first
    frame is taken. Raises PhotoError; OSError only where the disk, not the file, is at fault.
    """
    if isinstance(photo, np.ndarray):
        return _check_size(_from_array(photo), "The photo")
    if isinstance(photo, Image.Image):
        with _damage_told("The photo"):
            return _decode(photo, "The photo")
    path = Path(photo)
    try:
        # Given the path, Pillow 12.3 maps an uncompressed TIFF into memory by the size that it has
        # once it is turned, which scrambles it; a file object it reads.
        with (
            _damage_told(str(path)),
            open(path, "rb") as file,
            Image.open(file, formats=_formats()) as image,
        ):
            return _decode(image, str(path))
    except FileNotFoundError:
        raise PhotoError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise PhotoError(f"{path} is a folder; name a photo in it.") from None
    except PermissionError:
        raise PhotoError(f"{path} may not be read; check its permissions.") from None
    except Image.DecompressionBombError:
        raise PhotoError(_too_large(str(path))) from None
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        what = "is an empty file" if empty else "is not a picture in a known format"
        raise PhotoError(f"{path} {what}; give a JPEG, PNG, WebP, BMP or TIFF.") from None


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Turns what Pillow raises on damaged data into a PhotoError."""
    try:
        yield
    except (PhotoError, UnidentifiedImageError):
        raise
    except _DAMAGE as error:
        # Pillow's own OSErrors have no number; those of the system do.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise PhotoError(
            f"{name} is cut short or damaged ({what}); save or download it again."
        ) from error


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels; scale it down first."


def _check_size(array: np.ndarray, name: str) -> np.ndarray:
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise PhotoError(
            f"{name} is only {width} x {height} pixels; give one of at least {MIN_SIDE} x "
            f"{MIN_SIDE} with a face in it."
        )
    return array


def _decode(image: Image.Image, name: str) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise PhotoError(_too_large(name))
    image.load()
    return _check_size(np.array(_to_srgb(_upright(image))), name)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says.

    Not by Pillow's exif_transpose: it writes all of EXIF anew, and fails on any mistyped tag.
    """
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """As EXIF has it, 1 to 8; 1, upright, where EXIF cannot be read: the pixels can."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE as error:
        logger.warning("The photo's EXIF cannot be read (%r); it is taken as upright.", error)
        return 1


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, through the embedded profile if there is one."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return Image.fromarray(_from_array(_scale_wide(np.asarray(image))))
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("RGB", "CMYK", "L", "LAB"):
        image = image.convert("RGB")
    image = _apply_profile(image, profile) if profile else image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("The photo's colour profile is ignored: %s.", error)
        return image.convert("RGB")


def _scale_wide(values: np.ndarray) -> np.ndarray:
    """Modes I;16, I and F do not say what white is: 65535, 255 or 1, as the values suggest."""
    top = float(np.nanmax(values)) if values.size else 0.0
    if values.dtype.kind == "u":
        return values.astype(np.uint16)  # native byte order
    white = 1.0 if top <= 1 and values.dtype.kind == "f" else 255.0 if top <= 255 else 65535.0
    return values.astype(np.float32) / np.float32(white)


def _from_array(array: np.ndarray) -> np.ndarray:
    """(H, W[, C]) uint8, uint16 or floating point in [0, 1] -> (H, W, 3) uint8."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or array.size == 0:
        raise PhotoError(
            f"The photo is an array of shape {array.shape}; give (height, width, 3) instead."
        )
    if array.dtype == np.uint8 and array.shape[-1] == 3:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        array = array / np.float32(65535)
    elif array.dtype == np.uint8:
        array = array / np.float32(255)
    elif array.dtype.kind != "f" or not np.isfinite(array).all():
        raise PhotoError(
            f"The photo is an array of {array.dtype} that cannot be read as a picture; give uint8, "
            "or finite floating point numbers in [0, 1]."
        )
    colour = array[..., :1] if array.shape[-1] < 3 else array[..., :3]
    if array.shape[-1] in (2, 4):
        colour = colour * array[..., -1:] + (1 - array[..., -1:])
    pixels = np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
