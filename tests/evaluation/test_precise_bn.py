"""Precise BatchNorm statistics over many batches."""

import torch
from torch import nn

from resnet_pl.evaluation.precise_bn import update_bn


def test_statistics_are_those_of_all_images() -> None:
    images = torch.randn(60, 3, 5, 5) * 3 + 1
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5))
    assert update_bn(model, images.split(7), model) == 60
    flat = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[0].running_mean, flat.mean(1).float())
    torch.testing.assert_close(model[0].running_var, flat.var(1).float())
    assert not any(module.training for module in model.modules())


def test_later_layers_get_inputs_as_in_training() -> None:
    images = torch.randn(40, 3, 4, 4)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].running_mean.fill_(100)  # evaluation mode would subtract this
    update_bn(model, images.split(10), model)
    with torch.no_grad():
        inputs = torch.cat(
            [model[1](nn.functional.batch_norm(part, None, None, training=True)) for part in images.split(10)]
        )
    torch.testing.assert_close(model[2].running_mean, inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[2].running_var, inputs.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-5)


def test_a_model_without_batchnorm() -> None:
    assert update_bn(nn.Conv2d(3, 4, 3), [torch.randn(2, 3, 4, 4)], nn.Identity()) == 0
