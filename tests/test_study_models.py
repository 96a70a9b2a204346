"""Promise: a model's name makes the network that it says, for the images that it says, and refuses others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastprio.study.models import ResNet9, SmallCNN, WideResNet, evaluate, make_model

NAMES = ["small-cnn", "small-cnn-3", "resnet9", "resnet9-gn", "wrn-10-1", "wrn-16-2", "wrn-10-3-gn"]
GROUP_OR_NONE = [name for name in NAMES if name.startswith("small") or name.endswith("-gn")]


def images(n: int, channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(5))


def made(name: str, channels: int = 3, size: int = 8, classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return make_model(name, channels, size, classes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 12), (1, 28), (3, 32)])
def test_logits_are_a_row_an_image_for_every_size_and_number_of_channels(name, channels, size):
    logits = made(name, channels, size)(images(2, channels, size))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(name):
    model = made(name)
    nn.functional.cross_entropy(model(images(6)), torch.arange(6)).backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None, where
        assert parameter.grad.abs().sum() > 0, where


def neighbours_matter(model: nn.Module) -> bool:
    """Whether an image's logits change when all the other images of its batch do."""
    batch = images(6)
    with torch.no_grad():
        before, after = model(batch), model(torch.cat([batch[:1], 3 * batch[1:] + 1]))
    assert not torch.allclose(before[1:], after[1:], atol=1e-3)
    return not torch.allclose(before[0], after[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_in_evaluation_an_images_logits_do_not_depend_on_its_neighbours(name):
    assert not neighbours_matter(made(name).eval())


@pytest.mark.parametrize("name", NAMES)
def test_in_training_they_do_with_batch_normalisation_alone(name):
    assert neighbours_matter(made(name).train()) == (name not in GROUP_OR_NONE)


@pytest.mark.parametrize("name", GROUP_OR_NONE)
def test_group_variants_keep_nothing_of_the_batches(name):
    model = made(name)
    assert not list(model.buffers())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def of_wide_resnet(depth: int, k: int, channels: int, classes: int) -> int:
    """Weights by the paper's table: convolutions, shortcuts, a scale and a shift for each normalised channel."""
    n = (depth - 4) // 6
    total, inputs = channels * 16 * 9, 16
    for width in (16 * k, 32 * k, 64 * k):
        total += inputs * width * 9 + (2 * n - 1) * width * width * 9
        total += inputs * width if inputs != width else 0
        total += 2 * inputs + (2 * n - 1) * 2 * width
        inputs = width
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(
    ("depth", "widen", "channels", "classes"), [(10, 1, 1, 10), (16, 4, 3, 10), (22, 2, 3, 100), (28, 10, 3, 10)]
)
def test_a_wide_resnet_has_the_parameters_of_the_papers_table(depth, widen, channels, classes):
    with torch.device("meta"):
        for norm in ("batch", "group"):
            found = parameters(WideResNet(depth, widen, channels, classes, norm))
            assert found == of_wide_resnet(depth, widen, channels, classes)


@pytest.mark.parametrize(("depth", "widen", "published"), [(28, 10, 36_479_194), (16, 4, 2_748_890)])
def test_a_wide_resnet_has_the_parameters_that_are_published(depth, widen, published):
    with torch.device("meta"):
        assert parameters(WideResNet(depth, widen, 3, 10)) == published


def test_a_resnet9_has_the_parameters_of_its_nine_layers():
    layers = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    expected = sum(9 * a * b + 2 * b for a, b in layers) + 512 * 10
    with torch.device("meta"):
        assert parameters(ResNet9(3, 10)) == parameters(ResNet9(3, 10, "group")) == expected


def test_a_resnet9_leaves_4x4_of_32x32_to_its_last_pooling_and_an_eighth_of_its_last_layer():
    model, seen = made("resnet9", size=32).eval(), {}
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, _, out: seen.update({type(layer): out}))
    logits = model(images(2, size=32))
    assert seen[nn.MaxPool2d].shape == (2, 512, 4, 4)
    assert torch.equal(logits, seen[nn.Linear] / 8)


def test_a_wide_resnets_first_weights_have_the_variance_two_over_fan_out():
    for layer in made("wrn-10-4").modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("widen", "groups"), [(1, {16, 32}), (3, {16, 24, 32}), (4, {16, 32})])
def test_groups_are_32_or_the_most_below_that_divide_the_channels(widen, groups):
    found = {module for module in WideResNet(10, widen, 3, 10, "group").modules() if isinstance(module, nn.GroupNorm)}
    assert {module.num_groups for module in found} == groups


def test_a_name_with_numbers_sets_width_and_depth():
    assert made("small-cnn-3", 1).layers[0].weight.shape == (3, 1, 3, 3)
    assert made("small-cnn", 1).layers[0].weight.shape == (16, 1, 3, 3)
    assert parameters(made("wrn-16-2")) == of_wide_resnet(16, 2, 3, 7)
    assert make_model("resnet9", 1, (8, 8), 2)(images(2, 1)).shape == (2, 2)


@pytest.mark.parametrize(
    "name",
    [
        *("", "small-cnn-", "small-cnn-x", "small-cnn-16-gn", "small-cnn-gn", "resnet9-", "resnet18", "wrn", "wrn-16"),
        *("wrn-16-4-", "wrn-16-4-bn", "wrn-16-4-gn-gn", "wrn--16-4", "wrn-16-4\n", "WRN-16-4", "wrn-١٦-4"),
    ],
)
def test_an_unknown_name_is_refused_with_all_forms(name):
    forms = r"small-cnn, small-cnn-WIDTH, resnet9\[-gn\], wrn-DEPTH-WIDEN\[-gn\]"
    with pytest.raises(ValueError, match=f"^model = .*: expected one of {forms}$"):
        make_model(name, 3, 8, 10)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("resnet9", (8, 12), "images of 8x12: expected squares"),
        ("small-cnn", 10, "size = 10: expected a positive multiple of 4"),
        ("small-cnn", 0, "size = 0"),
        ("resnet9", 7, "images of 7x7: resnet9 takes 8x8 and larger"),
        ("wrn-10-1-gn", (4, 4), "images of 4x4: wrn-10-1-gn takes 8x8 and larger"),
        ("wrn-15-2", 8, r"depth = 15: expected 6n \+ 4 with n >= 1"),
        ("wrn-4-2", 8, "depth = 4: expected"),
        ("wrn-10-0", 8, "widen = 0: expected at least 1"),
        ("small-cnn-0", 8, "width = 0: expected at least 1"),
    ],
)
def test_images_and_numbers_that_do_not_fit_are_refused(name, size, says):
    with pytest.raises(ValueError, match=says):
        make_model(name, 3, size, 10)


@pytest.mark.parametrize("model", [lambda: ResNet9(3, 10, "layer"), lambda: WideResNet(10, 1, 3, 10, "layer")])
def test_another_norm_is_refused(model):
    with pytest.raises(ValueError, match="norm = 'layer': expected one of batch, group"):
        model()


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_is_the_same_for_every_batch_size_and_leaves_the_mode_as_it_was(training):
    model, x, y = made("wrn-10-1").train(training), images(9), torch.arange(9) % 7
    with torch.no_grad():
        logits = model.eval()(x)
    model.train(training)
    for batch_size in (2, 9, 250):
        right, loss = evaluate(model, x, y, batch_size)
        assert torch.equal(right, logits.argmax(1) == y)
        assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert model.training == training


def test_the_small_cnn_for_one_channel_starts_from_the_weights_that_it_always_had():
    torch.manual_seed(0)
    first = nn.Conv2d(1, 16, 3, padding=1)
    second = nn.Conv2d(16, 32, 3, padding=1)
    third = nn.Linear(128, 64)
    torch.manual_seed(0)
    layers = SmallCNN(8, 10).layers
    for at, expected in ((0, first), (3, second), (7, third)):
        assert torch.equal(layers[at].weight, expected.weight)
        assert torch.equal(layers[at].bias, expected.bias)
