"""Images of every kind become what transformers and timm make of them, and broken ones
are named."""

import dataclasses
import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image
from running import refused
from timm.data import create_transform, resolve_data_config
from tiny import VIT_IMAGES
from transformers import AutoImageProcessor, BitImageProcessor

from tasks.images.pixels import (
    BadImageError,
    Preprocessing,
    decode_image,
    load_prepared_images,
    preprocessing,
)

pytestmark = pytest.mark.parity

SIZES = [
    (256, 256),
    (300, 401),
    (300, 402),
    (300, 403),
    (225, 500),
    (32, 32),
    (640, 333),
    (227, 229),
]
PROCESSOR = "preprocessor_config.json"
SIDE = {"height": 224, "width": 224}
SQUARE = {"crop_size": SIDE}
DINOV2_IMAGES = BitImageProcessor(
    size={"shortest_edge": 256}, image_mean=(0.485, 0.456, 0.406)
).to_dict()
VIT = Preprocessing((16, 16), (16, 16), False, 2, (0.5,) * 3, (0.5,) * 3)


def noise(width, height, mode="RGB"):
    """A smooth image: what people photograph is no white noise."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return (
        Image.fromarray(small)
        .resize((width, height), Image.Resampling.BICUBIC)
        .convert(mode)
    )


def encoded(image, form="PNG", **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def normalised(wanted, image):
    mean, std = (
        np.array(values)[:, None, None] for values in (wanted.mean, wanted.std)
    )
    return (wanted.apply(image) / 255 - mean) / std


@pytest.mark.parametrize(
    "config",
    [
        {**VIT_IMAGES, "size": SIDE},
        {**VIT_IMAGES, "size": 224},  # as older files write it
        VIT_IMAGES
        | SQUARE
        | {"size": {"height": 256, "width": 256}, "do_center_crop": True},
        DINOV2_IMAGES,
        {
            **DINOV2_IMAGES,
            "image_processor_type": "CLIPImageProcessor",
            "size": 224,
            "crop_size": 224,
        },
        VIT_IMAGES
        | {
            "image_processor_type": "DeiTImageProcessor",
            "size": 256,
            "crop_size": 224,
            "resample": 3,
        },
        VIT_IMAGES
        | {"image_processor_type": "SiglipImageProcessor", "size": SIDE, "resample": 3},
    ],
    ids=["ViT", "ViT, older", "ViT, cut", "DINOv2", "CLIP, older", "DeiT", "SigLIP"],
)
# A few of 255 steps, over std
@pytest.mark.parametrize(
    ("backend", "tolerance"), [("pil", 1e-6), ("torchvision", 0.06)]
)
def test_pixels_are_those_of_transformers(config, backend, tolerance, tmp_path):
    (tmp_path / "config.json").write_text('{"patch_size": 16}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    theirs, ours = (
        AutoImageProcessor.from_pretrained(tmp_path, backend=backend),
        preprocessing(tmp_path),
    )
    for size in SIZES:
        image = noise(*size)
        wanted = np.asarray(
            theirs(images=image, return_tensors="np")["pixel_values"][0]
        )
        np.testing.assert_allclose(normalised(ours, image), wanted, atol=tolerance)
    assert ours.patch == 16


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_pct": 1.0, "crop_mode": "squash"},
    ],
    ids=str,
)
def test_pixels_are_those_of_timm(changes, tmp_path):
    config = {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    config |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], **changes}
    about = {"architecture": "vit_base_patch16_224", "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(about))
    ours, theirs = (
        preprocessing(tmp_path),
        create_transform(**resolve_data_config(pretrained_cfg=config)),
    )
    for image in (noise(*size) for size in SIZES):
        np.testing.assert_allclose(
            normalised(ours, image), theirs(image).numpy(), atol=1e-6
        )


def test_another_size_keeps_the_share_of_the_cut_out():
    dinov2 = Preprocessing((224, 224), 256, False, 3, (0.0,) * 3, (1.0,) * 3)
    assert dinov2.at_size(112) == dataclasses.replace(
        dinov2, size=(112, 112), resize=128
    )
    assert dinov2.at_size(None) == dinov2
    assert VIT.at_size(32) == dataclasses.replace(VIT, size=(32, 32), resize=(32, 32))
    with refused("such as 112"):
        dataclasses.replace(VIT, patch=16).at_size(109)


UNKNOWN = [
    *(
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 0.1},
        {"crop_pct": 0.9},
    ),
    *(
        {"image_processor_type": "EfficientNetImageProcessor"},
        {"do_center_crop": True},
        {"resample": None},
    ),
    *(
        {"size": {"shortest_edge": 224}},
        {"size": None},
        {"size": "x"},
        {"image_processor_type": None},
    ),
    *(
        {"image_processor_type": "a" * 900},
        {"a" * 900: "b" * 900},
        {"resample": "a" * 900},
    ),
    *({"resample": 70}, {"image_mean": ["a" * 900]}),
]


@pytest.mark.parametrize(
    "files",
    [
        {},
        *(
            {name: text}
            for name in ("config.json", PROCESSOR)
            for text in ("{", "[]", "[" * 200_000)
        ),
        *(
            {PROCESSOR: json.dumps({**VIT_IMAGES, "size": 224, **change})}
            for change in UNKNOWN
        ),
    ],
)
def test_a_model_that_does_not_say_how_its_images_are_prepared_is_refused(
    files, tmp_path
):
    for name, text in {"config.json": "{}", **files}.items():
        (tmp_path / name).write_text(text)
    with refused(str(tmp_path), "not known here" if files else PROCESSOR, longest=500):
        preprocessing(tmp_path)


# --- decoding


MODES = {"PNG": "L LA RGBA P 1", "JPEG": "L 1 CMYK YCbCr", "TIFF": "L RGBA P CMYK LAB"}


@pytest.mark.parametrize(
    ("form", "mode"), [(form, mode) for form in MODES for mode in MODES[form].split()]
)
def test_every_mode_becomes_rgb(form, mode):
    image = noise(40, 30).convert(mode) if mode != "LAB" else Image.new("LAB", (40, 30))
    got = decode_image(encoded(image, form))
    assert (got.mode, got.size) == ("RGB", (40, 30))
    if mode == "L":
        near = 8 if form == "JPEG" else 0
        np.testing.assert_allclose(
            np.asarray(got)[..., 0], np.asarray(image), atol=near
        )


def test_what_is_transparent_shows_white_and_the_rest_stays():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (10, 20, 30, 255)
    got = np.asarray(decode_image(encoded(Image.fromarray(pixels, "RGBA"))))
    assert (got[0] == (10, 20, 30)).all()
    assert (got[1] == 255).all()
    solid = Image.new("RGB", (2, 2), (9, 9, 9))
    assert (
        np.asarray(decode_image(encoded(solid, transparency=(9, 9, 9)))) == 255
    ).all()
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert (np.asarray(decode_image(encoded(palette, transparency=0))) == 255).all()


def test_sixteen_bits_of_grey_are_scaled_not_clipped():
    grey = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    got = np.asarray(decode_image(encoded(Image.fromarray(grey))))
    assert (got[..., 0] == grey >> 8).all()


def test_a_photograph_is_turned_as_its_exif_says():
    exif, image = Image.Exif(), noise(40, 30)
    exif[0x0112] = 6  # the camera was held upright
    got = decode_image(
        encoded(image, "JPEG", exif=exif.tobytes(), quality=100, subsampling=0)
    )
    wanted = image.transpose(Image.Transpose.ROTATE_270)
    assert got.size == (30, 40)
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=8)


def huge():
    """A small file that claims 40,000 x 40,000 pixels."""
    raw = bytearray(encoded(Image.new("1", (16, 16))))
    raw[16:24] = (40000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    return bytes(raw)


#: Pillow would start Ghostscript for it, whatever its name says.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        *((b"", "empty"), (b"no image", "not an image"), (huge(), "exceeds limit")),
        (encoded(noise(64, 64), "JPEG")[:700], "truncated"),
        (encoded(noise(64, 64))[:-200], "truncated"),
        *(
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not an image"),
            (POSTSCRIPT, "not an image"),
        ),
        (
            encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
            "pixels of F",
        ),
        (
            encoded(Image.fromarray(np.full((8, 8), 200, np.int32)), "TIFF"),
            "pixels of I",
        ),
        *(
            (encoded(noise(32, 32), form), "not an image")
            for form in ["ICO", "TGA", "JPEG2000", "DDS", "PDF"]
        ),
    ],
)
def test_a_broken_image_says_why(raw, why, tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(raw)
    for item in (raw, path):
        with pytest.raises(BadImageError, match=why):
            decode_image(item)


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "MPO"]
)
def test_the_formats_that_the_docs_name_are_read(form, tmp_path):
    image = noise(40, 30)
    # as phones write JPEG
    how = {"save_all": True, "append_images": [image]} if form == "MPO" else {}
    (tmp_path / "image.bin").write_bytes(encoded(image, form, **how))
    got = np.asarray(decode_image(tmp_path / "image.bin")).astype(int)
    assert abs(got - np.asarray(image)).mean() < 20


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(BadImageError, match="not a file"):
        decode_image(tmp_path / "image.png")


# --- the file of prepared images


def test_images_are_prepared_once_in_order_or_not_at_all(tmp_path):
    items = [np.full((8, 8, 3), shade, np.uint8) for shade in range(100, 200)]
    names = [f"{number}.png" for number in range(100)]
    with refused("1 images cannot be read: 41.png (not an image"):
        load_prepared_images(
            [*items[:41], b"broken", *items[42:]], names, "key", VIT, tmp_path, 2
        )
    assert not list(tmp_path.iterdir())
    pixels = load_prepared_images(items, names, "key", VIT, tmp_path, 2)
    assert pixels.shape == (100, 3, 16, 16)
    assert [int(p.max()) for p in pixels] == list(range(100, 200))
    never = (pytest.fail("read again") for _ in range(3))
    assert (
        np.asarray(load_prepared_images(never, names, "key", VIT, tmp_path, 2))
        == np.asarray(pixels)
    ).all()
    (done,) = tmp_path.glob("*.npy")
    # of a process that was killed
    leftover = done.rename(tmp_path / f".{done.name}.123")
    os.utime(leftover, (1, 1))
    assert load_prepared_images(items, names, "key", VIT, tmp_path, 1).shape == (
        100,
        3,
        16,
        16,
    )
    assert not leftover.exists()
    assert load_prepared_images(
        items, names, "key", VIT.at_size(32), tmp_path, 2
    ).shape == (
        100,
        3,
        32,
        32,
    )
    load_prepared_images(items, names, "other key", VIT, tmp_path, 2)
    for change in ({"resample": 3}, {"resize": 20}, {"rounds_margin": True}):
        load_prepared_images(
            items, names, "key", dataclasses.replace(VIT, **change), tmp_path, 2
        )
    assert len(list(tmp_path.glob("*.npy"))) == 2 + 4


def test_an_image_that_would_be_resized_to_gigapixels_cannot_be_read():
    """Its shorter edge grows to the model's: 200,000 x 1 pixels would become
    400,000,000 x 2,000."""
    wanted = dataclasses.replace(VIT, resize=2000)
    assert "too thin (200000 x 1)" in str(
        wanted.read(np.zeros((1, 200_000, 3), np.uint8))
    )
    assert isinstance(
        dataclasses.replace(VIT, resize=16).read(np.zeros((1, 200, 3), np.uint8)),
        np.ndarray,
    )
