"""From an image file to what a model sees: decoding, the preprocessing that belongs to the weights,
augmentation.

Pillow does the work in threads (it lets go of the interpreter while it decodes and resizes); no torch here.
Pixels stay bytes until they are on the device."""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from tasks.base import Array, DataError, parse_json

#: An image as it comes: a file, a file's bytes, or pixels of shape (height, width) or (height, width, 3).
Item = Path | bytes | Array
In = TypeVar("In")
Out = TypeVar("Out")


class BadImageError(Exception):
    """An image that cannot be read. The message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images. It is published beside the weights and part of them.

    resize: the length of the shorter edge after resizing, or (height, width) whatever the image's shape.
    size: the (height, width) that is then cut out of the middle, and that the model sees. rounds: whether an
    odd remainder is split by Python's round, as torchvision does for timm, or down, as transformers does.
    resample: Pillow's number of the filter. mean, std: of each channel, of values between 0 and 1. patch: the
    side of a ViT's patches, where that is known.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    rounds: bool
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int | None = None

    def at(self, size: int | None) -> "Preprocessing":
        """The same for square images of another size; the cut-out keeps its share. Raises DataError for parts
        of patches."""
        if size is None:
            return self
        if self.patch and size % self.patch:
            near = max(1, round(size / self.patch)) * self.patch
            raise DataError(
                f"task.image_size={size}: the model's patches are {self.patch} pixels. Give a multiple, such"
                f" as {near}"
            )
        height, width = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        scaled = round(height * size / self.size[0]), round(width * size / self.size[1])
        return replace(self, size=(size, size), resize=scaled[0] if isinstance(self.resize, int) else scaled)

    def apply(self, image: Image.Image) -> Array:
        """RGB image -> uint8 (3, height, width)."""
        if isinstance(self.resize, int):
            long = int(self.resize * max(image.size) / min(image.size))
            wanted = (self.resize, long) if image.width <= image.height else (long, self.resize)
        else:
            wanted = (self.resize[1], self.resize[0])
        image = image.resize(wanted, Image.Resampling(self.resample))
        height, width = self.size
        gaps = (image.width - width) / 2, (image.height - height) / 2
        left, top = (round(gap) if self.rounds else math.floor(gap) for gap in gaps)
        return channels_first(image.crop((left, top, left + width, top + height)))

    def read(self, item: Item) -> "Array | BadImageError":
        """An image as the model sees it, uint8 (3, height, width); or why it cannot be read."""
        try:
            image = decode(item)
            shape, limit = f"{image.width} x {image.height}", Image.MAX_IMAGE_PIXELS
            if (
                isinstance(self.resize, int)
                and limit
                and self.resize**2 * max(image.size) / min(image.size) > limit
            ):
                return BadImageError(f"too thin ({shape})")
            return self.apply(image)
        except BadImageError as error:
            return error


def preprocessing(folder: Path) -> Preprocessing:
    """What a model's folder says of it, in transformers' preprocessor_config.json or in timm's config.json.

    Raises DataError where it says nothing, or something that is not known here: wrong images would train
    without a word."""
    theirs, timms = folder / "preprocessor_config.json", folder / "config.json"
    try:
        config = _mapping(timms)
        if theirs.is_file():
            patch = config.get("patch_size")
            found = _transformers(_mapping(theirs))
            return replace(found, patch=patch if isinstance(patch, int) else None)
        if "pretrained_cfg" in config:
            return _timm(config["pretrained_cfg"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{folder}: how its images are prepared is not known here ({why})") from None
    kind = f" (its model_type is {config['model_type']})" if "model_type" in config else ""
    belongs = "How images are prepared belongs to the weights: copy it, too"
    raise DataError(f"{folder}{kind}: no preprocessor_config.json. {belongs}")


def _mapping(path: Path) -> dict[str, Any]:
    found = parse_json(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: not a JSON object")
    return found


def write_preprocessing(base: Path, folder: Path, wanted: Preprocessing) -> None:
    """Writes into a model's folder how its images are prepared: what its base says, with `wanted`'s sizes."""
    height, width = wanted.size
    theirs, timms = base / "preprocessor_config.json", folder / "config.json"
    if theirs.is_file():
        config = json.loads(theirs.read_text(encoding="utf-8"))
        seen = {"height": height, "width": width}
        if isinstance(wanted.resize, int):
            config["size"] = {"shortest_edge": wanted.resize}
        else:
            config["size"] = dict(zip(seen, wanted.resize, strict=True))
        config |= {"crop_size": seen} if "crop_size" in config else {}
        (folder / theirs.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    else:
        config = json.loads(timms.read_text(encoding="utf-8"))
        # Timm rounds the quotient down
        share = height / (wanted.resize + 0.5) if isinstance(wanted.resize, int) else 1.0
        config["pretrained_cfg"] |= {"input_size": [3, height, width], "crop_pct": share}
        timms.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


#: Processors of transformers that resize, cut out, scale to [0, 1] and normalise, and do nothing else.
KINDS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip")
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
#: What changes nothing.
IDLE = (
    "do_convert_rgb",
    "processor_class",
    "_valid_processor_keys",
    "feature_extractor_type",
    "image_processor_type",
)


def _transformers(config: dict[str, Any]) -> Preprocessing:
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    if kind not in KINDS:
        raise ValueError(f"image_processor_type {named}; known: {', '.join(KINDS)}")
    known = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std", *STEPS, *IDLE)
    unknown = sorted(key for key, value in config.items() if key not in known and value is not None)
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
    # As older files write it: of some the square's side, of others the shorter edge
    if isinstance(size, int):
        size = {"shortest_edge": size} if kind in ("Bit", "CLIP") else {"height": size, "width": size}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    edge = size.get("shortest_edge")
    if edge is not None and crop is None:
        raise ValueError("a shorter edge without a cut-out")
    resize = edge if edge is not None else (size["height"], size["width"])
    seen = size if crop is None else crop
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    return Preprocessing((seen["height"], seen["width"]), resize, False, config["resample"], mean, std)


def _timm(config: dict[str, Any]) -> Preprocessing:
    _, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    filter_ = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[
        config.get("interpolation") or "bicubic"
    ]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if mode == "squash" and share == 1:
        return Preprocessing((height, width), (height, width), True, filter_, mean, std)
    if mode != "center" or height != width:
        raise ValueError(f"crop_mode {mode}, crop_pct {share} of {height} x {width}")
    return Preprocessing((height, width), math.floor(height / share), True, filter_, mean, std)


def channels_first(image: Image.Image) -> Array:
    """height x width x channels as channels x height x width, in one piece of memory."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


#: What an image may be, whatever its name says, by Pillow's names (PPM: also PBM, PGM and PNM). Pillow opens
#: 40 formats, and PostScript among them by another program, Ghostscript. No data set here needs those.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow has: AVIF came late."""
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]


def decode(item: Item) -> Image.Image:
    """The first frame as RGB, upright (as its EXIF says), on white where it is transparent. Raises
    BadImageError, also for an image of a format that is not one of FORMATS."""
    if isinstance(item, Path) and item.exists() and not item.is_file():
        raise BadImageError("not a file")  # a pipe would be waited for
    if (isinstance(item, bytes) and not item) or (
        isinstance(item, Path) and item.is_file() and not item.stat().st_size
    ):
        raise BadImageError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a big image is none of our business until Pillow refuses it
            image = (
                Image.fromarray(item)
                if isinstance(item, np.ndarray)
                else Image.open(_opened(item), formats=_formats())
            )
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except PIL.UnidentifiedImageError:  # whose words name a place in memory
        raise BadImageError(f"not an image ({', '.join(_formats())})") from None
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise BadImageError((str(error).splitlines() or [type(error).__name__])[0]) from None


def _opened(item: Path | bytes) -> Path | io.BytesIO:
    return item if isinstance(item, Path) else io.BytesIO(item)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # grey in more than 8 bits, which Pillow would clip
        if not image.mode.startswith("I;16"):
            raise BadImageError(
                f"{'floating-point' if image.mode == 'F' else '32-bit'} pixels, whose range is not known"
            )
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def augment(
    item: Item, how: str, scale: Sequence[float], wanted: Preprocessing, generator: np.random.Generator
) -> Array:
    """A drawn view of an image, uint8 (3, height, width).

    how: "flip" (left and right, half of the time), or "crop" (a part of the area, a share drawn from `scale`,
    in a shape of 3:4 to 4:3, resized to the model's size; and flipped). Raises BadImageError.
    """
    image = decode(item)
    if how == "crop":
        area = image.width * image.height * generator.uniform(scale[0], scale[1])
        shape = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(image.width, max(1, round(math.sqrt(area * shape))))
        height = min(image.height, max(1, round(math.sqrt(area / shape))))
        left, top = generator.integers(image.width - width + 1), generator.integers(image.height - height + 1)
        box = (int(left), int(top), int(left) + width, int(top) + height)
        filter_ = Image.Resampling(wanted.resample)
        pixels = channels_first(image.resize((wanted.size[1], wanted.size[0]), filter_, box=box))
    else:
        pixels = wanted.apply(image)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if generator.random() < 0.5 else pixels


def parallel(
    function: Callable[[In], Out], items: Iterable[In], workers: int, ahead: int = 64
) -> Iterator[Out]:
    """function(item) for each item, in order, computed in threads, `ahead` of them before they are asked
    for."""
    source = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Out]] = [pool.submit(function, item) for item in islice(source, ahead)]
        waiting.reverse()  # the next one last
        try:
            while waiting:
                result = waiting.pop().result()
                waiting[:0] = [pool.submit(function, item) for item in islice(source, 1)]
                yield result
        finally:
            for future in waiting:
                future.cancel()


#: Raised by hand when a change of this file changes pixels: what was kept is then made anew.
VERSION = 2


def prepared(
    items: Iterable[Item], count: int, key: str, wanted: Preprocessing, folder: Path, workers: int
) -> tuple[Array, dict[int, str]]:
    """All of a set's images, uint8 (count, 3, height, width), from a file in `folder` that is made once; and
    which cannot be read (their pixels are zero), with the reason.

    key: stands for the images' content. A kill leaves no half file; a file that is damaged is made again; a
    full disk is an OSError.
    """
    made_with = repr(
        (VERSION, key, count, wanted.size, wanted.resize, wanted.rounds, wanted.resample, PIL.__version__)
    )
    path = folder / f"images-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}.npy"
    said, shape = path.with_suffix(".json"), (count, 3, *wanted.size)
    with contextlib.suppress(OSError, ValueError, EOFError, AttributeError):
        pixels, bad = np.load(path, mmap_mode="r"), json.loads(said.read_text())
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return pixels, {int(index): why for index, why in bad.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{path.name}.*"):  # of a process that was killed
        if time.time() - leftover.stat().st_mtime > 600:
            leftover.unlink(missing_ok=True)
    unreadable = dict[int, str]()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file:
        try:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            found = parallel(wanted.read, items, workers)
            for index, image in enumerate(
                tqdm(found, f"preparing {count} images, once", count, leave=False, disable=None)
            ):
                if isinstance(image, BadImageError):
                    unreadable[index], image = str(image), np.zeros(shape[1:], np.uint8)
                file.write(image.tobytes())
            file.flush()
            partial = Path(f"{file.name}.json")
            partial.write_text(json.dumps(unreadable))
            os.replace(partial, said)
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)
    return np.load(path, mmap_mode="r"), unreadable
