"""The images of a row: looked for where its dataset has them, decoded with care, and known by their pixels.

By pixels rather than by the bytes of a file: a trainer's collator gets decoded images alone, and what a copy in another
container or a lossless re-encoding leaves the same is the same to a model.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.rows.media import as_stored
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from trl_attribution.pairs.rows import RowSource

IMAGE_COLUMNS = ("image", "images")
"""As TRL calls them: one image, or a list of any number of them."""
SHOWN = "[image]"
"""What people see in the place of an image."""
# No format that an outside program decodes (EPS), or that is hardly ever an image to train on.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# Modes that RGBA holds without loss: the same picture in two of them is one.
_IN_RGBA = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA"))


@dataclass(frozen=True, slots=True)
class PairImage:
    """One image: where it is, and the digest of its pixels."""

    stored: bytes | Path | Image
    digest: str

    def open(self) -> Image:
        """The image, decoded anew from its bytes or its file.

        Raises:
            RowFault: the file has changed.
        """
        image = _decoded(self.stored, "images")
        if not isinstance(self.stored, bytes) and pixel_digest(image) != self.digest:
            raise RowFault("bad_image", "images", "has changed since it was read. Start again.")
        return image


def has_images(columns: Collection[str]) -> bool:
    """Whether a dataset with these columns is one of images to TRL."""
    return not set(IMAGE_COLUMNS).isdisjoint(columns)


def check_moved(source: RowSource, target: Path) -> None:
    """Refuse to write rows that name files of images to where their paths lead elsewhere.

    Raises:
        DataError: paths in the target go out from another folder than in the rows' own files.
    """
    if not has_images(source.columns or ()) or as_stored(source.features or {}) is not None:
        return
    parts = getattr(source, "parts", None)
    if parts is not None and not target.suffix:  # the folder is copied, with all that lies in it
        return
    folders = [one.path.parent for one in parts or [source] if hasattr(one, "path")]
    folders += [local_path(source.name)] if source.kind == "save_to_disk" else []
    there = target.parent if target.suffix else target
    if any(folder.resolve() != there.resolve() for folder in folders):
        raise DataError(
            f"{target}: {source.name} names its images by paths from its own folder, which would lead nowhere from "
            f"there. Write a file into {folders[0]}."
        )


def images_of(values: Mapping[str, Any], file: Path | None) -> tuple[PairImage, ...] | None:
    """The images of a row in order; None where its dataset has none.

    Args:
        values: the row; an image is a PIL image, what ``datasets`` stores of one, or a path.
        file: that the row is from: paths in it are relative to its folder and stay inside. None for rows in memory,
            whose paths are the user's own.

    Raises:
        RowFault: an image is missing, elsewhere (on a network, outside of the folder), too large, or cannot be read.
    """
    column = next((name for name in IMAGE_COLUMNS if name in values), None)
    if column is None:
        return None
    stored = [values[column]] if column == "image" else values[column]
    if not isinstance(stored, list | tuple):
        raise _fault(column, f"is a {type(stored).__name__}, not a list of images. Write a list, which may be empty.")
    return tuple(_image(one, column, file) for one in stored)


def pixel_digest(image: Image) -> str:
    """32 hex characters that stand for what an image shows: its size and all of its pixels."""
    shown = image.convert("RGBA") if image.mode in _IN_RGBA else image
    digest = hashlib.blake2b(f"{shown.mode} {shown.width} {shown.height};".encode(), digest_size=16)
    digest.update(shown.tobytes())
    return digest.hexdigest()


def _image(value: Any, column: str, file: Path | None) -> PairImage:
    stored: Any = value
    if isinstance(value, Mapping):
        stored = value.get("bytes") or value.get("path")
    if isinstance(stored, str | os.PathLike):
        stored = _local(os.fspath(stored), column, file)
    elif not (isinstance(value, Mapping) and isinstance(stored, bytes)) and not hasattr(stored, "getexif"):
        what = "missing" if stored is None else f"a {type(stored).__name__}"
        raise _fault(column, f"holds an image that is {what}. Store it as datasets.Image, or write the path of a file.")
    return PairImage(stored, pixel_digest(_decoded(stored, column)))


def _local(path: str, column: str, file: Path | None) -> Path:
    shown = printable(path, 100)
    if "://" in path or "::" in path or path.startswith("data:"):
        raise _fault(column, f"names the image '{shown}', which is no file here: nothing is downloaded. {_STORE_IT}")
    if file is None:
        return Path(path)
    folder = os.path.abspath(file if file.is_dir() else file.parent)  # noqa: PTH100  # links stay what they are
    whole = Path(os.path.abspath(Path(folder, path)))  # noqa: PTH100
    if not whole.is_relative_to(folder):
        raise _fault(column, f"names the image '{shown}', which lies outside of the dataset's folder. {_STORE_IT}")
    return whole


_STORE_IT = "Copy the image beside the dataset and write its path from there, or store its bytes (datasets.Image)."


def _decoded(stored: bytes | Path | Image, column: str) -> Image:
    """The pixels of an image as ``datasets`` hands them to a trainer: turned as its EXIF data say."""
    pil = _pillow()
    if not isinstance(stored, bytes | Path):
        return stored
    name = "an image" if isinstance(stored, bytes) else f"the image '{printable(stored.name, 100)}'"
    formats = [one for one in _FORMATS if one in pil.Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pil.Image.DecompressionBombWarning)
            if isinstance(stored, Path) and not stored.is_file():
                raise _fault(column, f"names {name}, and there is no such file. Check the path.")
            with pil.Image.open(BytesIO(stored) if isinstance(stored, bytes) else stored, formats=formats) as opened:
                opened.load()
                image: Image = pil.ImageOps.exif_transpose(opened)
    except RowFault:
        raise
    except (pil.Image.DecompressionBombWarning, pil.Image.DecompressionBombError) as error:
        raise _fault(
            column, f"holds {name} that is too large to decode ({printable(error, 200)}). Scale it down."
        ) from error
    except Exception as error:  # whatever a decoder makes of broken bytes
        raise _fault(
            column, f"holds {name} that cannot be read ({printable(error, 200)}). Mend the image, or drop the row."
        ) from error
    return image


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise DataError("the dataset holds images, which Pillow reads: pip install pillow") from error
    PIL.Image.init()
    return PIL


def _fault(column: str, detail: str) -> RowFault:
    return RowFault("bad_image", column, detail)
