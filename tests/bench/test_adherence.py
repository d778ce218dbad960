import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tgate_export.bench.adherence import adherence, breakdown, check
from tgate_export.data.shapes_world import COLOURS, PALETTE, SHAPES, Scene, random_scene, render

COUNT = 300


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(7)
    return [random_scene(rng) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def captions(scenes):
    return [scene.caption for scene in scenes]


@pytest.fixture(scope="module")
def pictures(scenes):
    return [render(scene) for scene in scenes]


def blur_and_noise(picture, rng):
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.2))
    return np.clip(np.asarray(blurred) + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)


def test_ground_truth_is_recognised(pictures, captions):
    assert adherence(pictures, captions) >= 0.99


def test_blurred_and_noisy_ground_truth_is_recognised(pictures, captions):
    rng = np.random.default_rng(8)
    assert adherence([blur_and_noise(p, rng) for p in pictures], captions) >= 0.99


def test_other_sizes_are_recognised(scenes, captions):
    larger = [render(scene, image_size=160) for scene in scenes[:50]]
    assert adherence(larger, captions[:50]) >= 0.99


def test_shuffled_captions_are_at_chance(pictures, captions):
    """Each share is within four standard deviations of what an unrelated caption would reach."""
    result = breakdown(pictures, captions[1:] + captions[:1])
    chances = {
        "shape": 1 / len(SHAPES),
        "colour": 1 / len(COLOURS),
        "background": 1 / len(COLOURS),
        "overall": 1 / (len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)),
    }
    for field, chance in chances.items():
        tolerance = 4 * math.sqrt(chance * (1 - chance) / COUNT)
        assert abs(getattr(result, field) - chance) <= tolerance, field


def test_fields_are_judged_one_by_one():
    picture = render(Scene("circle", "red", "blue"))
    captions = ["a red square on a blue background", "a red circle on a green background"]
    result = breakdown([picture, picture], captions)
    assert (result.overall, result.shape, result.colour, result.background) == (0, 0.5, 1, 0.5)


def test_an_empty_picture_shows_no_shape():
    found = check(np.full((64, 64, 3), PALETTE["green"], dtype=np.uint8))
    assert (found.shape, found.colour, found.background) == (None, None, "green")


def test_a_shape_of_another_world_is_not_named():
    """A thin frame and two separate dots look like none of the templates."""
    frame = render(Scene("square", "red", "blue", size=22.0))
    hole = render(Scene("square", "blue", "red", size=19.0))
    frame[13:51, 13:51] = hole[13:51, 13:51]
    assert check(frame).shape is None
    dots = np.full((64, 64, 3), PALETTE["white"], dtype=np.uint8)
    dots[8:16, 8:16] = dots[48:56, 48:56] = PALETTE["black"]
    assert check(dots).shape is None


def test_wrong_input_is_named(pictures):
    with pytest.raises(ValueError, match="expected uint8"):
        check(pictures[0].astype(np.float32))
    with pytest.raises(ValueError, match="a purple dog"):
        adherence(pictures[:1], ["a purple dog on a green background"])
    with pytest.raises(ValueError, match="one caption a picture"):
        adherence(pictures[:2], ["a red circle on a blue background"])
