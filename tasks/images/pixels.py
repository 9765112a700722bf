"""From an image file to a model's pixels: decoding, and the preprocessing of the model.

Pillow does the work in threads (it releases the GIL while it decodes and resizes),
without torch. Pixels stay bytes until they are on the device."""

import functools
import hashlib
import io
import json
import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from tasks.base import Array, DataError, first_line, unquoted
from tasks.files import atomic_write, validated

#: A raw image: a file, a file's bytes, or pixels of shape (height, width) or (height,
#: width, 3).
Item = Path | bytes | Array


class BadImageError(Exception):
    """An image that cannot be read. The message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a model's images, which is published with the weights.

    resize: the shorter edge after resizing, or (height, width) for any image. size: the
    (height, width) of the centre crop that follows, the model's input. rounds: whether
    the crop's margin is rounded by Python's round, as torchvision does for timm, or
    down, as transformers does. resample: Pillow's number of the filter. mean, std: of
    each channel, for values in [0, 1]. patch: the side of a ViT's patches, if known."""

    size: tuple[int, int]
    resize: int | tuple[int, int]
    rounds: bool
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int | None = None

    def at(self, size: int | None) -> "Preprocessing":
        """The same for square images of another size, with the same share of the crop.
        Raises DataError for a size that is no multiple of the patches."""
        if size is None:
            return self
        if self.patch and size % self.patch:
            mend = f"Give a multiple, such as {max(1, round(size / self.patch)) * self.patch}"
            raise DataError(
                f"task.image_size={size}: the model's patches are {self.patch} pixels. {mend}"
            )
        height, width = (
            (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        )
        scaled = round(height * size / self.size[0]), round(width * size / self.size[1])
        return replace(
            self,
            size=(size, size),
            resize=scaled[0] if isinstance(self.resize, int) else scaled,
        )

    def apply(self, image: Image.Image) -> Array:
        """RGB image -> uint8 (3, height, width)."""
        if isinstance(self.resize, int):
            long = int(self.resize * max(image.size) / min(image.size))
            shape = (
                (self.resize, long)
                if image.width <= image.height
                else (long, self.resize)
            )
        else:
            shape = (self.resize[1], self.resize[0])
        image = image.resize(shape, Image.Resampling(self.resample))
        height, width = self.size
        gaps = (image.width - width) / 2, (image.height - height) / 2
        left, top = (round(gap) if self.rounds else math.floor(gap) for gap in gaps)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def read(self, item: Item) -> "Array | BadImageError":
        """The model's pixels of an image, uint8 (3, height, width), or the reason why
        it cannot be read."""
        try:
            image = decode(item)
            edge = self.resize if isinstance(self.resize, int) else 0
            if edge**2 * max(image.size) / min(image.size) > (
                Image.MAX_IMAGE_PIXELS or math.inf
            ):
                return BadImageError(f"too thin ({image.width} x {image.height})")
            return self.apply(image)
        except BadImageError as error:
            return error


def preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing in a model's folder: transformers' preprocessor_config.json or
    timm's config.json. Raises DataError for none or an unknown one, since training on
    wrong pixels gives no error."""
    processor, model = folder / "preprocessor_config.json", folder / "config.json"
    try:
        config = _mapping(model)
        if processor.is_file():
            patch = config.get("patch_size")
            of_folder = _transformers(_mapping(processor))
            return replace(of_folder, patch=patch if isinstance(patch, int) else None)
        if "pretrained_cfg" in config:
            return _timm(config["pretrained_cfg"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = unquoted(f"no {error}" if isinstance(error, KeyError) else error, 300)
        raise DataError(
            f"{folder}: how its images are prepared is not known here ({why})"
        ) from None
    kind = (
        f" (its model_type is {config['model_type']})" if "model_type" in config else ""
    )
    raise DataError(
        f"{folder}{kind}: no preprocessor_config.json. Copy the model's, too"
    )


def _mapping(path: Path) -> dict[str, Any]:
    return validated(dict[str, Any], path.read_text(encoding="utf-8"), path.name)


def write_preprocessing(base: Path, folder: Path, wanted: Preprocessing) -> None:
    """Writes the preprocessing into a model's folder: that of its base, with the sizes
    of `wanted`."""
    (height, width), resize = wanted.size, wanted.resize
    processor, path = base / "preprocessor_config.json", folder / "config.json"
    if processor.is_file():
        config, path = (
            json.loads(processor.read_text(encoding="utf-8")),
            folder / processor.name,
        )
        crop = {"height": height, "width": width}
        edge = {"shortest_edge": resize}
        config["size"] = (
            edge if isinstance(resize, int) else dict(zip(crop, resize, strict=True))
        )
        config |= {"crop_size": crop} if "crop_size" in config else {}
    else:
        config = json.loads(path.read_text(encoding="utf-8"))
        # timm rounds the quotient down
        share = height / (resize + 0.5) if isinstance(resize, int) else 1.0
        config["pretrained_cfg"] |= {
            "input_size": [3, height, width],
            "crop_pct": share,
        }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


#: Processors of transformers that only resize, crop, scale to [0, 1] and normalise.
KINDS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip")
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
#: Keys that change nothing here.
IDLE = ("do_convert_rgb", "processor_class", "_valid_processor_keys")
TYPES = ("image_processor_type", "feature_extractor_type")


def _transformers(config: dict[str, Any]) -> Preprocessing:
    processor = str(next((config[key] for key in TYPES if config.get(key)), None))
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", processor)
    if kind not in KINDS:
        raise ValueError(f"image_processor_type {processor}; known: {', '.join(KINDS)}")
    known = {
        "size",
        "crop_size",
        "resample",
        "rescale_factor",
        "image_mean",
        "image_std",
    }
    known |= {*STEPS, *IDLE, *TYPES}
    unknown = sorted(
        key for key, value in config.items() if key not in known and value is not None
    )
    if unknown:
        raise ValueError(f"{unknown[0]}={config[unknown[0]]}")
    crops = config.get("do_center_crop", kind not in ("ViT", "Siglip"))
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"{step}=false")
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor={config['rescale_factor']}")
    if config.get("resample") is None:
        raise KeyError("resample")
    size, crop = config["size"], config["crop_size"] if crops else None
    # An older file has one number: the side of a square, or for some kinds the shorter
    # edge
    if isinstance(size, int):
        size = (
            {"shortest_edge": size}
            if kind in ("Bit", "CLIP")
            else {"height": size, "width": size}
        )
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    edge = size.get("shortest_edge")
    if edge is not None and crop is None:
        raise ValueError("a shorter edge without a centre crop")
    resize = edge if edge is not None else (size["height"], size["width"])
    final = size if crop is None else crop
    mean, std = (tuple(map(float, config[key])) for key in ("image_mean", "image_std"))
    filter_ = Image.Resampling(config["resample"]).value
    return Preprocessing(
        (final["height"], final["width"]), resize, False, filter_, mean, std
    )


def _timm(config: dict[str, Any]) -> Preprocessing:
    _, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    filter_ = Image.Resampling[(config.get("interpolation") or "bicubic").upper()].value
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if mode == "squash" and share == 1:
        return Preprocessing((height, width), (height, width), True, filter_, mean, std)
    if mode != "center" or height != width:
        raise ValueError(f"crop_mode {mode}, crop_pct {share} of {height} x {width}")
    return Preprocessing(
        (height, width), math.floor(height / share), True, filter_, mean, std
    )


#: Pillow's names of the formats that are read, whatever the file's name (PPM: also PBM,
#: PGM and PNM). Pillow knows 40, PostScript among them, for which it starts
#: Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")


@functools.cache
def _formats() -> list[str]:
    """FORMATS without those that an older Pillow lacks, such as AVIF."""
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]


def decode(item: Item) -> Image.Image:
    """The first frame as RGB, rotated by its EXIF, with transparent parts on white.
    Raises BadImageError, also for a format that is not one of FORMATS."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a big image before it refuses a bigger one
            warnings.simplefilter("ignore")
            if isinstance(item, np.ndarray):
                image = Image.fromarray(item)
            else:
                image = Image.open(_file(item), formats=_formats())
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except PIL.UnidentifiedImageError:  # whose message holds a memory address
        raise BadImageError(f"not an image ({', '.join(_formats())})") from None
    except Exception as error:  # decoders raise any error for a broken file
        raise BadImageError(first_line(error)) from None


def _file(item: Path | bytes) -> Path | io.BytesIO:
    if isinstance(item, Path) and item.exists() and not item.is_file():
        raise BadImageError("not a file")  # reading a pipe would block
    if not (len(item) if isinstance(item, bytes) else item.stat().st_size):
        raise BadImageError("empty")
    return item if isinstance(item, Path) else io.BytesIO(item)


def _rgb(image: Image.Image) -> Image.Image:
    # grey in more than 8 bits, which Pillow would clip
    if image.mode.startswith(("I", "F")):
        if not image.mode.startswith("I;16"):
            raise BadImageError(f"pixels of {image.mode}, whose range is not known")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(
            Image.new("RGBA", image.size, "white"), image
        ).convert("RGB")
    return image.convert("RGB")


def read_all(
    items: Iterable[Item], names: Iterable[str], wanted: Preprocessing, workers: int
) -> Iterator[Array]:
    """The model's pixels of images, uint8 (3, height, width), in their order, read in
    threads and not far ahead. Raises DataError at the end for those that cannot be
    read, by their names."""
    bad, todo = list[str](), zip(items, names, strict=True)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(todo, 16 * workers)):
            for image, (_, name) in zip(
                pool.map(wanted.read, [item for item, _ in some]), some, strict=True
            ):
                if isinstance(image, BadImageError):
                    # bytes that are not UTF-8
                    shown = name.encode("utf-8", "backslashreplace").decode()
                    bad.append(f"{shown} ({image})")
                else:
                    yield image
    if bad:
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise DataError(
            f"{len(bad)} images cannot be read: {'; '.join(bad[:20])}{more}"
        )


#: Raised by hand when a change of this file changes pixels, so that kept files are made
#: again.
VERSION = 3


def prepared(
    items: Iterable[Item],
    names: Sequence[str],
    key: str,
    wanted: Preprocessing,
    folder: Path,
    workers: int,
) -> Array:
    """All images of a set, uint8 (images, 3, height, width), from a file in `folder`
    that is made once. key: a hash of the images. Raises DataError as `read_all`, and
    OSError for a full disk."""
    count = len(names)
    how = wanted.size, wanted.resize, wanted.rounds, wanted.resample
    made_with = repr((VERSION, key, count, *how, PIL.__version__))
    path = folder / f"images-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{path.stem}.*"):  # of a process that was killed
            if time.time() - leftover.stat().st_mtime > 600:
                leftover.unlink(missing_ok=True)
        with atomic_write(path) as partial, open(partial, "wb") as file:
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (count, 3, *wanted.size),
            }
            np.lib.format.write_array_header_1_0(file, header)
            images = read_all(items, names, wanted, workers)
            for image in tqdm(
                images,
                f"preparing {count} images, once",
                count,
                leave=False,
                disable=None,
            ):
                file.write(image.tobytes())
    return np.load(path, mmap_mode="r")
