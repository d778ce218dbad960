from itertools import combinations

import numpy as np
import pytest

from tgate_export.data import SHAPES_DIR
from tgate_export.data.shapes_world import (
    COLOURS,
    IMAGE_SIZE,
    MARGIN,
    MAX_SIZE,
    MIN_SIZE,
    PALETTE,
    SHAPES,
    Scene,
    all_captions,
    coverage,
    random_scene,
    render,
)


def test_every_pair_of_colours_and_shape_has_one_caption():
    captions = all_captions()
    assert len(captions) == len(set(captions)) == len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)
    assert "a red circle on a blue background" in captions
    assert "a red circle on a red background" not in captions


def test_palette_is_well_separated():
    distances = [
        np.linalg.norm(np.subtract(PALETTE[one], PALETTE[other]))
        for one, other in combinations(COLOURS, 2)
    ]
    assert min(distances) > 130


def test_random_scenes_are_reproducible_and_inside_the_picture():
    scenes = [random_scene(np.random.default_rng(seed)) for seed in range(200)]
    assert scenes == [random_scene(np.random.default_rng(seed)) for seed in range(200)]
    for scene in scenes:
        assert scene.colour != scene.background
        assert MIN_SIZE <= scene.size <= MAX_SIZE
        for position in scene.center:
            assert position - scene.size >= MARGIN
            assert position + scene.size <= IMAGE_SIZE - MARGIN
    assert {scene.shape for scene in scenes} == set(SHAPES)


def test_render_paints_shape_and_background():
    picture = render(Scene("square", "red", "cyan", center=(20.0, 40.0), size=15.0))
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[40, 20]) == PALETTE["red"]
    assert tuple(picture[2, 60]) == PALETTE["cyan"]


@pytest.mark.parametrize(
    ("shape", "area"),
    [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5), ("cross", 1 - 4 * 0.32**2)],
)
def test_shapes_cover_their_share_of_the_box_and_are_centred(shape, area):
    scene = Scene(shape, "red", "blue", center=(30.0, 34.0), size=20.0)
    mask = coverage(scene)
    assert mask.sum() / 40.0**2 == pytest.approx(area, rel=0.04)
    columns = np.nonzero(mask.any(axis=0))[0]
    rows = np.nonzero(mask.any(axis=1))[0]
    assert (columns[0], columns[-1] + 1) == pytest.approx((10, 50), abs=1)
    assert (rows[0], rows[-1] + 1) == pytest.approx((14, 54), abs=1)


def test_edges_are_anti_aliased():
    mask = coverage(Scene("circle", "red", "blue"))
    assert ((mask > 0.1) & (mask < 0.9)).any()


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTokenizer.from_pretrained(SHAPES_DIR / "tokenizer")


def test_tokenizer_of_the_pipeline_knows_every_word_of_every_caption(tokenizer):
    for caption in all_captions():
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(caption).input_ids)
        words = [f"{word}</w>" for word in caption.split()]
        assert tokens == ["<|startoftext|>", *words, "<|endoftext|>"]


def test_tokenizer_of_the_pipeline_encodes_any_string_and_pads(tokenizer):
    text = "Façade 日本 \U0001f600 + 12"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id not in ids  # the unknown token, too
    assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")
    padded = tokenizer("", padding="max_length").input_ids
    assert padded == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 15
