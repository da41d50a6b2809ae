"""Networks of other packages: what is passed to their functions, and what config.yaml and checkpoints hold of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from resnet_pl.load import build, load_run
from resnet_pl.models.heads import find_heads
from tests.cli.commands import BARE, refused, run
from tests.conftest import write_photos

ONE_STEP = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1]


def stored_backbone() -> dict[str, Any]:
    """The backbone in the config.yaml of the first run."""
    return yaml.safe_load(Path("runs/digits/version_0/config.yaml").read_text())["model"]["init_args"]["backbone"]


def last(version: int) -> dict[str, torch.Tensor]:
    path = f"runs/digits/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("given", "width"), [([], 12), pytest.param(["--model.backbone.width", 4], 4, marks=pytest.mark.slow)]
)
def test_a_function_gets_the_arguments_that_are_given(place: Path, given: list[Any], width: int) -> None:
    run("fit", *BARE, *ONE_STEP, "--model.backbone", "tests.own.wide_net", *given)
    assert last(0)["backbone.fc.weight"].shape == (10, width)
    assert stored_backbone()["init_args"] == ({"width": 4} if given else {})
    model, _ = load_run("runs/digits/version_0")
    assert model.backbone.fc.weight.shape == (10, width)
    if given:  # the same run from its config.yaml
        run("fit", "--config", "runs/digits/version_0/config.yaml")
        assert all(torch.equal(value, last(1)[key]) for key, value in last(0).items())


def test_a_default_without_a_form_in_yaml_is_left_out(place: Path) -> None:
    run("fit", *BARE, *ONE_STEP, "--model.backbone", "tests.own.WidthNet")
    assert stored_backbone() == {"class_path": "tests.own.WidthNet", "init_args": {"width": 4}}
    run("test", "--ckpt_path", "best")
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert load_run("runs/digits/version_0")[0].backbone.act.negative_slope == 0.2


def test_a_configuration_that_could_not_be_read_back_is_refused_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "fit", *BARE, *ONE_STEP, "--model.backbone", "tests.own.SystemNet")
    assert "no checkpoint of this run could be opened again" in said and "time.sleep" in said
    assert not Path("runs").exists()


def test_class_names_keep_their_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["yes", "no", "1e3", "null", "007", "~", "1_0", "on", "0x1F", "1.0"]
    words = [*BARE, *ONE_STEP, "--model.backbone", "tests.own.wide_net"]
    run("fit", *words, f"--model.class_names=[{', '.join(names)}]")
    assert load_run("runs/digits/version_0")[0].class_names == names
    run("fit", "--config", "runs/digits/version_0/config.yaml")
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert load_run("runs/digits/version_1")[0].class_names == names
    Path("names.yaml").write_text(f"model: {{class_names: [{', '.join(names[:9])}]}}")
    assert "9 classes yes, no, 1e3, null, 007, ~" in refused(capsys, "fit", *words, "--config", "names.yaml")


# What a network is trained with where it does not accept images of 32 pixels.
SIZES = {"alexnet": 64, "googlenet": 64, "inception_v3": 299, "maxvit_t": 224, "vit": 224, "squeezenet": 64}
TORCHVISION = torchvision.models.list_models(module=torchvision.models)
# The other networks of a family differ from these in numbers and widths of layers only. They are built, not trained.
TRAINED = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn"),
    *("vit_b_32", "wide_resnet50_2"),
}
TIMM = {
    **dict.fromkeys(
        [
            *("resnet10t", "seresnet18", "resnet18d", "regnety_002", "convnext_atto", "convnextv2_atto", "nf_resnet26"),
            *("efficientnet_lite0", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "dla34"),
            *("mnasnet_small", "ghostnet_050", "edgenext_xx_small", "mobileone_s0", "repvgg_a0", "densenet121"),
            *("hrnet_w18_small", "poolformer_s12", "pvt_v2_b0", "rexnet_100", "tinynet_e", "lcnet_035", "test_resnet"),
            *("mobilevit_xxs", "xception41", "fastvit_t8", "starnet_s1", "resnetv2_50", "semnasnet_050"),
        ],
        64,
    ),
    **dict.fromkeys(
        [
            *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s"),
            *(
                "swin_tiny_patch4_window7_224",
                "mixer_s32_224",
                "xcit_nano_12_p16_224",
                "cait_xxs24_224",
                "visformer_tiny",
            ),
            *("pit_ti_distilled_224", "efficientformer_l1", "tiny_vit_5m_224"),
        ],
        224,
    ),
    "inception_v3": 299,
}


def size_of(name: str) -> int:
    return next((size for start, size in SIZES.items() if name.startswith(start)), 32)


def train_and_reopen(place: Path, size: int, *backbone: object) -> None:
    """Trains one step from images, and classifies an image with the checkpoint."""
    write_photos(place / "photos", ["ant", "bee"], count=6, size=40)
    words = ["--data", "ImageFolder", "--data.root", "photos", "--data.image_size", size, "--data.batch_size", 2]
    words += ["--data.num_workers", 0, "--data.val_split", 2, "--data.test_split", 2, "--model.optimizer", "SGD"]
    words += ["--trainer.logger", "false", "--model.optimizer.lr", 1e-3, "--dashboard.enabled", "false"]
    run("fit", *words, *ONE_STEP, "--model.backbone", *backbone)
    run("predict", "--ckpt_path", "best", "--images", "photos/ant/0000.jpg")
    run("fit", "--config", "runs/resnet/version_0/config.yaml", "--trainer.fast_dev_run", "true")
    shutil.rmtree("runs")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRAINED))
def test_networks_of_torchvision(place: Path, name: str) -> None:
    train_and_reopen(place, size_of(name), f"torchvision.models.{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TORCHVISION if name not in TRAINED])
def test_other_networks_of_torchvision_are_built(name: str) -> None:
    config = {"backbone": f"torchvision.models.{name}", "num_classes": 3}
    with torch.device("cpu" if "regnet" in name else "meta"):  # RegNets compute with the values of tensors
        model, _ = build({"model": {"class_path": "resnet_pl.ImageClassifier", "init_args": config}}, skip=["data"])
        model.configure_model()
    assert {len(head.weight) for head in find_heads(model.backbone).values()} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(place: Path, name: str) -> None:
    pytest.importorskip("timm")
    train_and_reopen(place, TIMM[name], "timm.create_model", "--model.backbone.model_name", name)
