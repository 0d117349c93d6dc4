"""Pixels to input: the per-pixel mean against subtraction by hand, and its way through text."""

from __future__ import annotations

import pydantic
import pytest
import torch

from detres.data.preprocessing import TORCHVISION, MeanImage, Preprocessing, normalize

MEAN = MeanImage(torch.arange(24, dtype=torch.float32).reshape(3, 2, 4))
PER_PIXEL = Preprocessing(
    channel_order="BGR", value_range=255, mean=(3.5, 11.5, 19.5), std=(1.0, 1.0, 1.0), mean_image=MEAN
)


def test_mean_image_is_subtracted_where_the_size_is_its_own():
    images = torch.randint(0, 256, (2, 3, 2, 4), dtype=torch.uint8)
    expected = images.float()[:, [2, 1, 0]] - MEAN.values
    assert torch.equal(normalize(images, PER_PIXEL), expected)
    wider = torch.randint(0, 256, (3, 2, 5), dtype=torch.uint8)
    means = torch.tensor([3.5, 11.5, 19.5]).view(3, 1, 1)
    assert torch.equal(normalize(wider, PER_PIXEL), wider.float()[[2, 1, 0]] - means)
    assert torch.equal(normalize(images, PER_PIXEL.per_channel()), images.float()[:, [2, 1, 0]] - means)


def test_range_0_to_1_scales_the_mean_image_too():
    unit = PER_PIXEL.model_copy(update={"value_range": 1, "mean_image": MeanImage(MEAN.values / 255)})
    images = torch.randint(0, 256, (3, 2, 4), dtype=torch.uint8)
    expected = (images.double()[[2, 1, 0]] - MEAN.values) / 255
    assert torch.allclose(normalize(images, unit, torch.float64), expected, atol=1e-7)


def test_shift_is_added_to_red_green_and_blue_of_the_pixels():
    images = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    shifted = normalize(images, PER_PIXEL, shifts=torch.tensor([[1.0, 2.0, -3.0]]))
    assert torch.equal(shifted[0] + MEAN.values, torch.tensor([-3.0, 2.0, 1.0]).view(3, 1, 1).expand(3, 2, 4))


def test_mean_image_goes_through_json_bit_by_bit():
    values = torch.randn(3, 5, 7)
    recipe = TORCHVISION.model_copy(update={"mean_image": MeanImage(values)})
    again = Preprocessing.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert again.mean_image is not None
    assert torch.equal(again.mean_image.values, values)
    assert hash(again.mean_image) == hash(recipe.mean_image)
    assert again != TORCHVISION


@pytest.mark.parametrize("text", ["", "2x2", "2x2:AAAA", "2x2:!!", "axb:AAAA", 3, f"1x1:{'//9/fw' * 2}=="])
def test_damaged_text_is_refused(text):
    with pytest.raises(pydantic.ValidationError):
        Preprocessing.model_validate({"mean_image": text})
