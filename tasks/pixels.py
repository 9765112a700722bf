"""From an image file to what a model sees: decoding, the preprocessing that belongs to the weights, augmentation.

Pillow does the work in threads (it lets go of the interpreter while it decodes and resizes); no torch here. Pixels stay
bytes until they are on the device.
"""

import hashlib
import io
import json
import math
import os
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

from tasks.base import Array, DataError

#: An image as it comes: a file, a file's bytes, or pixels of shape (height, width) or (height, width, 3).
Item = Path | bytes | Array
In = TypeVar("In")
Out = TypeVar("Out")


class BadImageError(Exception):
    """An image that cannot be read. The message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images. It is published beside the weights and part of them.

    size: height and width that the model sees. shorter_edge: the image is resized until its shorter edge has this
    length, and the middle is cut out; None: it is resized to `size`, whatever its shape. resample: Pillow's number of
    the filter. mean, std: of each channel, of values between 0 and 1.
    """

    size: tuple[int, int]
    shorter_edge: int | None
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def at(self, size: int | None) -> "Preprocessing":
        """The same for square images of another size; the cut-out keeps its share."""
        if size is None:
            return self
        edge = None if self.shorter_edge is None else round(self.shorter_edge * size / min(self.size))
        return replace(self, size=(size, size), shorter_edge=edge)

    def apply(self, image: Image.Image) -> Array:
        """RGB image -> uint8 (3, height, width)."""
        height, width = self.size
        filter_ = Image.Resampling(self.resample)
        if self.shorter_edge is None:
            return channels_first(image.resize((width, height), filter_))
        scale = [self.shorter_edge, int(self.shorter_edge * max(image.size) / min(image.size))]
        image = image.resize((scale[0], scale[1]) if image.width <= image.height else (scale[1], scale[0]), filter_)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return channels_first(image.crop((left, top, left + width, top + height)))

    def read(self, item: Item) -> "Array | BadImageError":
        """An image as the model sees it, uint8 (3, height, width); or why it cannot be read."""
        try:
            return self.apply(decode(item))
        except BadImageError as error:
            return error


def preprocessing(folder: Path) -> Preprocessing:
    """What a model's folder says of it, in transformers' preprocessor_config.json or in timm's config.json.

    Raises DataError where it says nothing, or something that is not known here.
    """
    theirs, timms = folder / "preprocessor_config.json", folder / "config.json"
    try:
        if theirs.is_file():
            return _transformers(json.loads(theirs.read_text(encoding="utf-8")))
        config = json.loads(timms.read_text(encoding="utf-8"))
        if "pretrained_cfg" in config:
            return _timm(config["pretrained_cfg"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: what it says of its images is not understood ({type(error).__name__}: {error})") from None
    raise DataError(f"{folder}: no preprocessor_config.json. How images are prepared belongs to the weights: copy it, too")


def _transformers(config: dict[str, Any]) -> Preprocessing:
    size, crop = config["size"], config.get("crop_size")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    if isinstance(size, int):  # as older files write it: ViT's resize to a square, the others' to a shorter edge
        size = {"height": size, "width": size} if kind.startswith(("ViT", "Deit", "DeiT")) else {"shortest_edge": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not (config.get("do_resize", True) and config.get("do_normalize", True)):
        raise ValueError("images that are not resized or not normalised")
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor {config['rescale_factor']}")
    edge = size.get("shortest_edge")
    if edge is not None and not (crop and config.get("do_center_crop", True)):
        raise ValueError("a shorter edge without a cut-out")
    seen: Any = crop if edge is not None else size
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    return Preprocessing((seen["height"], seen["width"]), edge, int(config.get("resample", 2)), mean, std)


def _timm(config: dict[str, Any]) -> Preprocessing:
    _, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    filter_ = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[config.get("interpolation") or "bicubic"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    edge = math.floor(min(height, width) / share)
    if mode == "squash" and share == 1:
        return Preprocessing((height, width), None, filter_, mean, std)
    if mode != "center" or height != width:
        raise ValueError(f"crop_mode {mode}, crop_pct {share} of {height} x {width}")
    return Preprocessing((height, width), edge, filter_, mean, std)


def channels_first(image: Image.Image) -> Array:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode(item: Item) -> Image.Image:
    """The first frame as RGB, upright (as its EXIF says), on white where it is transparent. Raises BadImageError."""
    if (isinstance(item, bytes) and not item) or (isinstance(item, Path) and item.is_file() and not item.stat().st_size):
        raise BadImageError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a big image is none of our business until Pillow refuses it
            image = Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(_opened(item))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise BadImageError((str(error).splitlines() or [type(error).__name__])[0]) from None


def _opened(item: Path | bytes) -> Path | io.BytesIO:
    return item if isinstance(item, Path) else io.BytesIO(item)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def augment(item: Item, how: str, scale: Sequence[float], wanted: Preprocessing, generator: np.random.Generator) -> Array:
    """A drawn view of an image, uint8 (3, height, width).

    how: "flip" (left and right, half of the time), or "crop" (a part of the area, a share drawn from `scale`, in a shape
    of 3:4 to 4:3, resized to the model's size; and flipped). Raises BadImageError.
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


def parallel(function: Callable[[In], Out], items: Iterable[In], workers: int, ahead: int = 64) -> Iterator[Out]:
    """function(item) for each item, in order, computed in threads, `ahead` of them before they are asked for."""
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


def prepared(
    items: Iterable[Item], count: int, key: str, wanted: Preprocessing, folder: Path, workers: int
) -> tuple[Array, dict[int, str]]:
    """All of a set's images, uint8 (count, 3, height, width), from a file in `folder` that is made once; and which
    cannot be read (their pixels are zero), with the reason.

    key: stands for the images' content. A kill leaves no half file; a full disk is an OSError.
    """
    made_with = repr((key, count, wanted.size, wanted.shorter_edge, wanted.resample, PIL.__version__))
    path = folder / f"images-{hashlib.sha256(made_with.encode()).hexdigest()[:16]}.npy"
    said = path.with_suffix(".json")
    if not (path.is_file() and said.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{path.name}.*"):  # of a process that was killed
            if time.time() - leftover.stat().st_mtime > 600:
                leftover.unlink(missing_ok=True)
        partial, bad = folder / f".{path.name}.{os.getpid()}", dict[int, str]()
        try:
            with open(partial, "wb") as file:
                shape = (count, 3, *wanted.size)
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                title = f"preparing {count} images, once"
                for index, pixels in enumerate(
                    tqdm(parallel(wanted.read, items, workers), title, count, leave=False, disable=None)
                ):
                    if isinstance(pixels, BadImageError):
                        bad[index], pixels = str(pixels), np.zeros(shape[1:], np.uint8)
                    file.write(pixels.tobytes())
            said.write_text(json.dumps(bad))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r"), {int(index): why for index, why in json.loads(said.read_text()).items()}
