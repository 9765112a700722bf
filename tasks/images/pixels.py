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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

#: A raw image: a file, a file's bytes, or uint8 pixels of shape (height, width) or
#: (height, width, 3).
Item = Path | bytes | Array
#: (height, width)
Size = tuple[int, int]


class BadImageError(Exception):
    """An image that cannot be read. The message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a model's images, which is published with the weights.

    resize: the shorter edge after resizing, or (height, width) for any image. size: the
    (height, width) of the centre crop that follows, the model's input. rounds_margin: whether
    the crop's margin is rounded by Python's round, as torchvision does for timm, or
    down, as transformers does. resample: Pillow's number of the filter. mean, std: of
    each channel, for values in [0, 1]. patch: the side of a ViT's patches, if known."""

    size: Size
    resize: int | Size
    rounds_margin: bool
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int | None = None

    def at_size(self, size: int | None) -> "Preprocessing":
        """The same preprocessing for square images of `size` pixels a side (None changes
        nothing): the crop keeps its share of the resized image. Raises DataError for a size
        that is no multiple of the patches."""
        if size is None:
            return self
        if self.patch and size % self.patch:
            multiple = max(1, round(size / self.patch)) * self.patch
            raise DataError(
                f"task.image_size={size}: the model's patches are {self.patch} pixels. "
                f"Give a multiple, such as {multiple}"
            )
        square = (size, size)
        if isinstance(self.resize, int):
            edge = round(self.resize * size / self.size[0])
            return replace(self, size=square, resize=edge)
        height, width = self.resize
        shape = (
            round(height * size / self.size[0]),
            round(width * size / self.size[1]),
        )
        return replace(self, size=square, resize=shape)

    def apply(self, image: Image.Image) -> Array:
        """The model's pixels of an RGB image, uint8 (3, height, width): it is resized, then
        cropped."""
        image = image.resize(self._resized(image), Image.Resampling(self.resample))
        height, width = self.size
        to_whole: Callable[[float], int] = round if self.rounds_margin else math.floor
        left = to_whole((image.width - width) / 2)
        top = to_whole((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of an image after resizing, in Pillow's order."""
        if not isinstance(self.resize, int):
            height, width = self.resize
            return width, height
        longer_edge = int(self.resize * max(image.size) / min(image.size))
        if image.width <= image.height:
            return self.resize, longer_edge
        return longer_edge, self.resize

    def read(self, item: Item) -> "Array | BadImageError":
        """The model's pixels of an image, uint8 (3, height, width). The error is returned,
        not raised, where it cannot be read: threads read many images, and all bad ones are
        reported together."""
        try:
            image = decode_image(item)
        except BadImageError as error:
            return error
        if isinstance(self.resize, int):
            # The resized image of a thin one could fill the memory
            pixels = self.resize**2 * max(image.size) / min(image.size)
            if pixels > (Image.MAX_IMAGE_PIXELS or math.inf):
                return BadImageError(f"too thin ({image.width} x {image.height})")
        return self.apply(image)


# --- the preprocessing of a model


def preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing in a model's folder: transformers' preprocessor_config.json or
    timm's config.json. Raises DataError for none or an unknown one, since training on
    wrong pixels gives no error."""
    processor = folder / "preprocessor_config.json"
    try:
        config = _read_config(folder / "config.json")
        if processor.is_file():
            patch = config.get("patch_size")
            known_patch = patch if isinstance(patch, int) else None
            without_patch = _from_transformers(_read_config(processor))
            return replace(without_patch, patch=known_patch)
        if "pretrained_cfg" in config:
            return _from_timm(config["pretrained_cfg"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"{folder}: how its images are prepared is not known here "
            f"({unquoted(problem, 300)})"
        ) from None
    kind = ""
    if "model_type" in config:
        kind = f" (its model_type is {config['model_type']})"
    raise DataError(
        f"{folder}{kind}: no preprocessor_config.json. Copy the model's, too"
    )


#: A JSON file's object. Whoever reads a key of it checks the value.
Config = Mapping[str, Any]


def _read_config(path: Path) -> Config:
    """Reads a JSON file of a model. Raises DataError, and OSError without the file."""
    return validated(dict[str, Any], path.read_text(encoding="utf-8"), path.name)


def write_preprocessing(base: Path, folder: Path, preprocessing: Preprocessing) -> None:
    """Writes the preprocessing into a model's folder: transformers' or timm's file, as the
    base model has it, with the sizes of `preprocessing` in place of the base model's.

    base: the base model's folder. folder: the new model's, which has a config.json."""
    height, width = preprocessing.size
    path = folder / "config.json"
    processor = base / "preprocessor_config.json"
    if processor.is_file():
        path = folder / processor.name
        config = json.loads(processor.read_text(encoding="utf-8"))
        if isinstance(preprocessing.resize, int):
            config["size"] = {"shortest_edge": preprocessing.resize}
        else:
            config["size"] = dict(
                zip(("height", "width"), preprocessing.resize, strict=True)
            )
        if "crop_size" in config:
            config["crop_size"] = {"height": height, "width": width}
    else:
        config = json.loads(path.read_text(encoding="utf-8"))
        share = 1.0
        if isinstance(preprocessing.resize, int):
            # timm rounds height / share down. With the 0.5 the result is
            # preprocessing.resize, whatever the division's rounding error
            share = height / (preprocessing.resize + 0.5)
        config["pretrained_cfg"]["input_size"] = [3, height, width]
        config["pretrained_cfg"]["crop_pct"] = share
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


#: Processors of transformers that only resize, crop, scale to [0, 1] and normalise.
KINDS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip")
#: The keys of preprocessor_config.json that may name the processor.
TYPE_KEYS = ("image_processor_type", "feature_extractor_type")
#: The keys of preprocessor_config.json that are understood here.
KNOWN_KEYS = {
    "size",
    "crop_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    *TYPE_KEYS,
    # which change nothing here
    "do_convert_rgb",
    "processor_class",
    "_valid_processor_keys",
}


def _from_transformers(config: Config) -> Preprocessing:
    """The preprocessing in transformers' file. Raises ValueError for one that does more
    than those of KINDS, and KeyError for a missing key."""
    types = [config[key] for key in TYPE_KEYS if config.get(key)]
    processor = str(types[0]) if types else "None"
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", processor)
    if kind not in KINDS:
        raise ValueError(f"image_processor_type {processor}; known: {', '.join(KINDS)}")
    _check_steps(config)
    size, crop = _sizes(config, kind)
    edge = size.get("shortest_edge")
    if edge is not None and crop is None:
        raise ValueError("a shorter edge without a centre crop")
    final = size if crop is None else crop
    return Preprocessing(
        size=(final["height"], final["width"]),
        resize=(size["height"], size["width"]) if edge is None else edge,
        rounds_margin=False,
        resample=Image.Resampling(config["resample"]).value,
        mean=tuple(float(value) for value in config["image_mean"]),
        std=tuple(float(value) for value in config["image_std"]),
    )


def _check_steps(config: Config) -> None:
    """Raises ValueError for a key or a step that is not known here, and KeyError for a
    missing filter."""
    for key in sorted(config):
        if key not in KNOWN_KEYS and config[key] is not None:
            raise ValueError(f"{key}={config[key]}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"{step}=false")
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor={config['rescale_factor']}")
    if config.get("resample") is None:
        raise KeyError("resample")


def _sizes(config: Config, kind: str) -> tuple[Config, Config | None]:
    """The size after resizing, and that of the crop (None without a crop), as mappings
    with height and width, or shortest_edge. An older file has one number instead: the side
    of a square, or for some kinds the shorter edge. kind: one of KINDS."""
    size = config["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size}
        if kind in ("Bit", "CLIP"):
            size = {"shortest_edge": config["size"]}
    crop = None
    # Without the key, processors crop by default, except these kinds
    if config.get("do_center_crop", kind not in ("ViT", "Siglip")):
        crop = config["crop_size"]
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    return size, crop


def _from_timm(config: Config) -> Preprocessing:
    """The preprocessing in timm's file. Raises ValueError for a crop that is not known
    here."""
    _, height, width = config["input_size"]
    # What follows an "or" is timm's own default
    mode = config.get("crop_mode") or "center"
    share = config.get("crop_pct") or 0.875
    squashed = mode == "squash" and share == 1
    if not squashed and (mode != "center" or height != width):
        raise ValueError(f"crop_mode {mode}, crop_pct {share} of {height} x {width}")
    interpolation = config.get("interpolation") or "bicubic"
    return Preprocessing(
        size=(height, width),
        resize=(height, width) if squashed else math.floor(height / share),
        rounds_margin=True,
        resample=Image.Resampling[interpolation.upper()].value,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


# --- decoding


#: Pillow's names of the formats that are read, whatever the file's name (PPM: also PBM,
#: PGM and PNM). Pillow knows 40, PostScript among them, for which it starts
#: Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")


@functools.cache
def _formats() -> list[str]:
    """FORMATS without those that an older Pillow lacks, such as AVIF."""
    Image.init()
    return [form for form in FORMATS if form in Image.OPEN]


def decode_image(item: Item) -> Image.Image:
    """The first frame of an image as RGB, rotated as its EXIF data say, with transparent
    parts on white. Raises BadImageError, also for a format that is not in FORMATS."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a big image before it refuses a bigger one
            warnings.simplefilter("ignore")
            if isinstance(item, np.ndarray):
                image = Image.fromarray(item)
            else:
                image = Image.open(_openable(item), formats=_formats())
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except PIL.UnidentifiedImageError:  # whose message holds a memory address
        raise BadImageError(f"not an image ({', '.join(_formats())})") from None
    except Exception as error:  # decoders raise any error for a broken file
        raise BadImageError(first_line(error)) from None


def _openable(item: Path | bytes) -> Path | io.BytesIO:
    """An item in a form that Pillow can open. Raises BadImageError for an empty one, and
    for a path that is no file."""
    if isinstance(item, bytes):
        if not item:
            raise BadImageError("empty")
        return io.BytesIO(item)
    if item.exists() and not item.is_file():
        raise BadImageError("not a file")  # reading a pipe would block
    if not item.stat().st_size:
        raise BadImageError("empty")
    return item


def _rgb(image: Image.Image) -> Image.Image:
    """An image as RGB. Raises BadImageError for numbers of an unknown range."""
    # "I" and "F" are grey in more than 8 bits, which Pillow would clip, not scale
    if image.mode.startswith(("I", "F")):
        if not image.mode.startswith("I;16"):
            raise BadImageError(f"pixels of {image.mode}, whose range is not known")
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # the upper 8 of 16 bits
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


#: How many images are read ahead for each thread.
READ_AHEAD = 16
#: The most images that an error message names.
SHOWN_IMAGES = 20


def read_all(
    items: Iterable[Item],
    names: Iterable[str],
    preprocessing: Preprocessing,
    workers: int,
) -> Iterator[Array]:
    """The model's pixels of each image, uint8 (3, height, width), in the order of `items`.

    Images are read by `workers` threads, only a few ahead of those that were taken. Raises
    DataError at the end, with the names of all images that cannot be read."""
    problems = []
    unread = zip(items, names, strict=True)
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(unread, READ_AHEAD * workers)):
            images = pool.map(preprocessing.read, [item for item, _ in batch])
            for image, (_, name) in zip(images, batch, strict=True):
                if isinstance(image, BadImageError):
                    problems.append(f"{printable_name(name)} ({image})")
                else:
                    yield image
    if problems:
        text = "; ".join(problems[:SHOWN_IMAGES])
        if len(problems) > SHOWN_IMAGES:
            text += f" and {len(problems) - SHOWN_IMAGES} more"
        raise DataError(f"{len(problems)} images cannot be read: {text}")


def printable_name(name: str) -> str:
    """An image's name, as it can be printed. A character that is not UTF-8 (a file's name
    may have such bytes) is written as an escape such as \\udcff."""
    return name.encode("utf-8", "backslashreplace").decode()


# --- all images of a set


#: Raise it when you change this file so that pixels change: prepared files are then made
#: again.
VERSION = 3
#: An unfinished file that is older is left from a process that was killed.
LEFTOVER_AGE_S = 600


def load_prepared_images(
    items: Iterable[Item],
    names: Sequence[str],
    key: str,
    preprocessing: Preprocessing,
    folder: Path,
    workers: int,
) -> Array:
    """All images of a set, uint8 (images, 3, height, width), mapped from a file in `folder`
    that is made once. key: a hash that stands for the images. The other arguments are
    those of `read_all`. Raises DataError as it does, and OSError for a full disk."""
    path = folder / _file_name(key, len(names), preprocessing)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{path.stem}.*"):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                leftover.unlink(missing_ok=True)
        images = read_all(items, names, preprocessing, workers)
        with atomic_write(path) as partial:
            _write_images(partial, images, (len(names), 3, *preprocessing.size))
    return np.load(path, mmap_mode="r")


def _file_name(key: str, count: int, preprocessing: Preprocessing) -> str:
    """The name of the prepared file: a hash of all that decides about its pixels. Mean and
    std do not: pixels are normalised on the device. key: a hash that stands for the
    images. count: how many there are."""
    steps = (
        preprocessing.size,
        preprocessing.resize,
        preprocessing.rounds_margin,
        preprocessing.resample,
    )
    contents = repr((VERSION, key, count, *steps, PIL.__version__))
    return f"images-{hashlib.sha256(contents.encode()).hexdigest()[:16]}.npy"


def _write_images(
    path: Path, images: Iterator[Array], shape: tuple[int, int, int, int]
) -> None:
    """Writes images of uint8 one after the other, in the format of numpy.save. shape: that
    of all images together."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    title = f"preparing {shape[0]} images, once"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in tqdm(images, title, shape[0], leave=False, disable=None):
            file.write(image.tobytes())
