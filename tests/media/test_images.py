import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.media import images
from stylecrafter_jax.media.images import (
    CLIP_MEAN,
    CLIP_STD,
    ImageError,
    clip_pixels,
    load_style_image,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIZES = [(512, 224), (224, 224), (225, 224), (300, 224), (1500, 224), (64, 224), (7, 16), (1, 8)]


def picture(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def unnormalised(pixels):
    return np.asarray(pixels, np.float64) * np.array(CLIP_STD) + np.array(CLIP_MEAN)


def saved(path, image, **options):
    image.save(path, **options)
    return path


# Loading


@pytest.mark.parametrize(
    "as_source", [str, lambda p: p, Image.open, lambda p: np.array(Image.open(p))]
)
def test_every_kind_of_source_gives_the_same_square(tmp_path, as_source):
    path = saved(tmp_path / "a.png", Image.fromarray(picture(40, 60)))
    ours = load_style_image(as_source(path), size=32)
    scaled = Image.fromarray(picture(40, 60)).resize((48, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ours, np.asarray(scaled)[:, 8:40])
    assert ours.shape == (32, 32, 3) and ours.dtype == np.uint8


@pytest.mark.parametrize(("h", "w", "scaled"), [(16, 31, 15), (31, 16, 15), (10, 13, 10)])
def test_longer_side_is_truncated_and_the_crop_offset_rounded(h, w, scaled):
    size = 8
    longer = int(size * max(h, w) / min(h, w))
    assert longer == scaled
    new = (longer, size) if w > h else (size, longer)
    whole = np.asarray(Image.fromarray(picture(h, w)).resize(new, Image.Resampling.BILINEAR))
    # Half offsets go to the even neighbour: 3.5 to 4 and 1.0 to 1.
    offset = {15: 4, 10: 1}[scaled]
    cut = (slice(None), slice(offset, offset + 8))
    np.testing.assert_array_equal(
        load_style_image(picture(h, w), size=size), whole[cut if w > h else cut[::-1]]
    )


def test_image_of_the_right_size_is_kept():
    np.testing.assert_array_equal(load_style_image(picture(64, 64), size=64), picture(64, 64))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("RGB", (20, 20), WHITE).convert(mode)
    np.testing.assert_allclose(load_style_image(image, size=16), 255, atol=1)
    assert load_style_image(image, size=16).shape == (16, 16, 3)


def test_transparent_parts_become_white_without_a_dark_fringe(tmp_path):
    x = np.zeros((32, 32, 4), np.uint8)
    x[:, :16] = (*RED, 255)
    ours = load_style_image(saved(tmp_path / "a.png", Image.fromarray(x)), size=16)
    assert tuple(ours[8, 2]) == RED and tuple(ours[8, 13]) == WHITE
    assert (ours[..., 0] == 255).all()
    np.testing.assert_array_equal(load_style_image(x, size=16), ours)


def test_opaque_alpha_changes_nothing():
    x = picture(50, 40)
    alpha = np.full((50, 40, 1), 255, np.uint8)
    np.testing.assert_array_equal(
        load_style_image(np.concatenate([x, alpha], -1), size=24), load_style_image(x, size=24)
    )


def test_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, *RED])
    path = saved(tmp_path / "a.gif", image, transparency=1)
    assert (load_style_image(path, size=8) == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(np.full((16, 16), 0x8040, np.uint16)))
    assert (load_style_image(path, size=16) == 0x80).all()


def test_orientation_tag_is_applied(tmp_path):
    x = np.zeros((32, 48, 3), np.uint8)
    x[:16] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the top comes to the right
    path = saved(tmp_path / "a.png", Image.fromarray(x), exif=exif)
    ours = load_style_image(path, size=32)
    assert tuple(ours[16, 30]) == RED and tuple(ours[16, 1]) == (0, 0, 0)
    np.testing.assert_array_equal(ours, load_style_image(np.rot90(x, -1), size=32))


def test_first_frame_of_an_animation_is_taken(tmp_path):
    first, second = (Image.new("RGB", (16, 16), c) for c in (GREEN, BLUE))
    path = saved(tmp_path / "a.webp", first, save_all=True, append_images=[second], lossless=True)
    assert (load_style_image(path, size=8) == GREEN).all()


def test_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path, monkeypatch):
    y, x = np.mgrid[:640, :900]
    smooth = np.stack([x * 255 / 900, y * 255 / 640, (x + y) * 255 / 1540], -1).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(smooth), quality=95)
    whole = load_style_image(path, size=64)
    decoded = []
    square = images._square
    monkeypatch.setattr(images, "LARGE", 10_000)
    monkeypatch.setattr(images, "_square", lambda im, n: decoded.append(im.size) or square(im, n))
    np.testing.assert_allclose(load_style_image(path, size=64), whole.astype(int), atol=3)
    assert decoded == [(225, 160)]


def test_long_strip_is_cut_before_it_is_resized():
    strip = np.zeros((8, 20_000, 3), np.uint8)
    strip[:, 9_900:10_100] = GREEN
    assert (load_style_image(strip, size=64) == GREEN).all()


def test_image_over_the_pixel_limit_is_one_line(tmp_path, monkeypatch):
    path = saved(tmp_path / "huge.png", Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"huge\.png: Image size \(4096 pixels\) exceeds limit"):
        load_style_image(path)


def test_unreadable_files_are_one_line_that_names_them(tmp_path):
    whole = saved(tmp_path / "whole.png", Image.fromarray(picture(64, 64))).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    saved(tmp_path / "float.tiff", Image.fromarray(np.zeros((16, 16), np.float32)))
    for name in ("cut.png", "text.png", "empty.jpg", "missing.png", "float.tiff", "."):
        with pytest.raises(ImageError) as error:
            load_style_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (picture(7, 40), "7x40 pixels, wanted at least 8"),
        (picture(40, 40)[None], "got shape"),
        (picture(40, 40)[..., :2], "got shape"),
        (np.zeros((0, 40, 3), np.uint8), "got shape"),
        (np.zeros((40, 40, 3), np.int32), "uint8 or floats, got int32"),
        (np.full((40, 40, 3), np.nan, np.float32), "in .0, 1., got nan"),
        (np.full((40, 40, 3), 255.0), "in .0, 1., got 255"),
        (np.full((40, 40, 3), -1.0), "in .0, 1., got -1"),
    ],
)
def test_wrong_arrays_are_refused(x, message):
    with pytest.raises(ImageError, match=message):
        load_style_image(x)


def test_float_and_grey_arrays_are_understood():
    x = picture(40, 40)
    np.testing.assert_array_equal(load_style_image(x / np.float32(255), 40), x)
    np.testing.assert_array_equal(load_style_image(x[..., 0], 40), np.stack([x[..., 0]] * 3, -1))


def test_the_given_image_is_left_as_it_was():
    image = Image.fromarray(picture(20, 30)).convert("P")
    before = image.copy()
    load_style_image(image, size=16)
    assert image == before and image.mode == "P"


# CLIP's pixels


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_rows_of_a_resize_matrix_sum_to_one(n, size):
    matrix = images._resize_matrix(n, size)
    assert matrix.shape == (size, n)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_a_resize_matrix_is_symmetric_under_reflection(n, size):
    matrix = images._resize_matrix(n, size)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_equal_size_is_the_identity():
    np.testing.assert_array_equal(images._resize_matrix(224, 224), np.eye(224))


@pytest.mark.parametrize("size", [8, 224])
def test_a_constant_image_stays_constant(size):
    pixels = clip_pixels(np.full((1, 100, 37, 3), 51, np.uint8), size=size)
    np.testing.assert_allclose(unnormalised(pixels), 0.2, atol=1e-6)


@pytest.mark.parametrize(("n", "size"), [(512, 224), (100, 224), (900, 224)])
def test_blur_keeps_a_ramp_linear_away_from_the_borders(n, size):
    ramp = images._blur(n, max((n / size - 1) / 2, 0.001)) @ np.arange(n, dtype=float)
    margin = 2 + int(4 * max((n / size - 1) / 2, 0.75))
    np.testing.assert_allclose(ramp[margin:-margin], np.arange(n)[margin:-margin], atol=1e-9)


def test_corner_pixels_are_aligned():
    # Enlarging by a whole factor passes through the given pixels.
    matrix = images._resize_matrix(8, 7 * 4 + 1)
    np.testing.assert_allclose(matrix[::4], np.eye(8), atol=1e-12)


@pytest.mark.parametrize(("h", "w"), [(512, 512), (300, 224), (97, 600), (31, 50), (224, 448)])
def test_clip_pixels_equal_blur_and_bicubic_of_torch(h, w):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def blurred(x, sigmas, taps):
        kernels = []
        for sigma, k in zip(sigmas, taps, strict=True):
            gauss = torch.exp(
                -((torch.arange(k, dtype=torch.float64) - k // 2) ** 2) / (2 * sigma**2)
            )
            kernels.append(gauss / gauss.sum())
        kernel = (kernels[0][:, None] * kernels[1])[None, None]
        pad = (taps[1] // 2, taps[1] // 2, taps[0] // 2, taps[0] // 2)
        y = F.pad(x.transpose(0, 1), pad, mode="reflect")
        return F.conv2d(y, kernel).transpose(0, 1)

    image = picture(h, w)
    x = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None] / 255 * 2 - 1
    if max(h, w) > 224:
        sigmas = [max((n / 224 - 1) / 2, 0.001) for n in (h, w)]
        taps = [int(max(4 * sigma, 3)) for sigma in sigmas]
        x = blurred(x, sigmas, [k + (k % 2 == 0) for k in taps])
    if (h, w) != (224, 224):
        x = F.interpolate(x, size=(224, 224), mode="bicubic", align_corners=True)
    x = (x[0].permute(1, 2, 0).numpy() + 1) / 2
    wanted = (x - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(clip_pixels(image[None])[0], wanted, atol=2e-5)


def test_clip_pixels_do_not_depend_on_their_batch_and_trace():
    batch = np.stack([picture(40, 60, seed) for seed in range(3)])
    together = jax.jit(lambda x: clip_pixels(x, size=16))(jnp.asarray(batch))
    apart = jnp.concatenate([clip_pixels(x[None], size=16) for x in batch])
    assert together.shape == (3, 16, 16, 3) and together.dtype == jnp.float32
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_given_mean_and_std_are_used():
    x = picture(16, 16)[None]
    ours = clip_pixels(x, size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    np.testing.assert_allclose(ours, x / 127.5 - 1.0, atol=1e-6)
