"""Images to infer: which ones, and how each becomes what a network takes. Nothing is random."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ppcls.data.datasets.base import in_layout, naming
from ppcls.data.datasets.detection import require_decode, split_decode
from ppcls.data.datasets.folder import IMAGE_SUFFIXES
from ppcls.data.transforms import Compose, ToCHWImage, build_box_transforms, build_transforms
from ppcls.utils.errors import DataError

# A path, the bytes of an image file, or HWC uint8 RGB pixels as numpy.ndarray.
Image = str | Path | bytes | bytearray | memoryview | np.ndarray


def list_images(path: Path) -> list[Path]:
    """Return the images `path` means: itself, those of a folder (sorted, all levels), or those a
    `.txt` file lists, one a line, relative to the file's own folder.

    Raises DataError when there is nothing.
    """
    if path.is_dir():
        found = sorted(
            p
            for p in path.rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
    elif path.suffix.lower() == ".txt" and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected a text file that lists images: {error}") from error
        found = [path.parent / line.strip() for line in lines if line.strip()]
    else:
        found = [path]
    if not found:
        raise DataError(f"{path}: expected at least one image, found none")
    missing = next((image for image in found if not image.is_file()), None)
    if missing is not None:
        listed = "" if missing == path else f" (listed in {path})"
        raise DataError(f"{missing}: no such image{listed}")
    return found


class PreparedImage(NamedTuple):
    """An image as a network takes it."""

    name: str | None  # its file, if it came from one
    tensor: np.ndarray  # [C, H, W] float32, or what the preparation was asked for
    size: tuple[int, int]  # (width, height) of the image itself, in pixels
    pixels: np.ndarray | None  # the image itself, HWC uint8 RGB, if it was to be kept


class Preparation:
    """What inference does to an image before the network: decode, transform, lay out.

    May be called from several threads.

    Args:
        entries: YAML list of transforms, DecodeImage first.
        where: dotted path of the list, for errors.
        task: a detector's are box transforms.
        layout: of the result, whatever the transforms end with.
        dtype: of the result; the transforms must then end in uint8 pixels.
    """

    def __init__(
        self,
        entries: list,
        where: str,
        *,
        task: Literal["classification", "detection"] = "classification",
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        dtype: Literal["float32", "uint8"] = "float32",
    ) -> None:
        if task == "detection":
            boxed = build_box_transforms(entries, where)
            self.decode, self._box_transforms = split_decode(boxed, where)
            self._gives_chw = self._box_transforms.gives_chw
        else:
            built = build_transforms(entries, where).transforms
            self.decode = require_decode(built[0] if built else None, where)
            self._box_transforms = None
            self._transforms = Compose(built[1:])
            self._gives_chw = any(isinstance(op, ToCHWImage) for op in built)
        self._to_chw, self._dtype = layout == "NCHW", np.dtype(dtype)

    def __call__(
        self, image: Image, name: str | None = None, *, keep_pixels: bool = False
    ) -> PreparedImage:
        """Prepare one image. `name` is what results and errors call it, by default its path.

        Raises DataError, which names it, for an image that cannot be used.
        """
        if name is None and isinstance(image, (str, Path)):
            name = str(image)
        with naming(lambda: name or "the image"):
            decoded = self._decode(image)
            tensor = self._arrange(self._transform(decoded))
        height, width = decoded.shape[:2]
        pixels = self._in_rgb(decoded) if keep_pixels else None
        return PreparedImage(name, tensor, (width, height), pixels)

    def _decode(self, image: Image) -> np.ndarray:
        """Return pixels in the order of channels that the transforms expect."""
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(
                    "expected HWC uint8 pixels of 3 channels (RGB), "
                    f"got {image.dtype} {list(image.shape)}"
                )
            return self._in_rgb(image)  # the same swap, the other way round
        if isinstance(image, (str, Path)):
            image = Path(image).read_bytes()
        return self.decode(image, np.random.default_rng(0))

    def _in_rgb(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self.decode.to_rgb else np.ascontiguousarray(pixels[:, :, ::-1])

    def _transform(self, decoded: np.ndarray) -> Any:
        rng = np.random.default_rng(0)
        if self._box_transforms is None:
            return self._transforms(decoded, rng)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return self._box_transforms(decoded, *nothing, rng).image

    def _arrange(self, image: Any) -> np.ndarray:
        image = in_layout(image, self._gives_chw, to_chw=self._to_chw)
        if self._dtype == np.uint8 and image.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels after the transforms, got {image.dtype}")
        return np.ascontiguousarray(image, dtype=self._dtype)
