"""Pretrained weights: sources, errors, key conversion, and the classes of files of this project."""

import os
import pickle
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from resnet_pl import models
from resnet_pl.checkpoint import METADATA_KEY
from resnet_pl.data.digests import fingerprints
from resnet_pl.models import ResNet, cifar_resnet, load_pretrained, read_state_dict, resnet18
from resnet_pl.models.weights_file import save_weights
from resnet_pl.utils import UserError


def small_resnet(num_classes: int = 5, **kwargs: Any) -> ResNet:
    return ResNet("basic", [1, 1], num_classes, **({"stem": "cifar", "width": 4} | kwargs))


def no_download(url: str) -> Path:
    raise AssertionError(f"nothing to download, but {url} was asked for")


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor], except_prefix: str = "no key") -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if not key.startswith(except_prefix))


def message_of(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    return message


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_common_keys_and_prefixes(tmp_path, key, prefix):
    state = small_resnet().state_dict()
    content = {prefix + name: value for name, value in state.items()}
    torch.save({key: content, "epoch": 3} if key else content, tmp_path / "x.pth")
    assert equal_states(read_state_dict(tmp_path / "x.pth"), state)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone._orig_mod.", "_orig_mod.backbone."])
def test_only_the_backbone_of_a_checkpoint(tmp_path, prefix):
    state = small_resnet().state_dict()
    extra = {"criterion.weight": torch.ones(5), "train_top1.correct": torch.zeros(1)}
    content = {"state_dict": {prefix + k: v for k, v in state.items()} | extra, "hyper_parameters": {"lr": 0.1}}
    torch.save(content, tmp_path / "last.ckpt")
    assert equal_states(read_state_dict(tmp_path / "last.ckpt"), state)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = small_resnet().state_dict()
    safetensors.save_file(state, tmp_path / "x.safetensors")
    assert equal_states(read_state_dict(tmp_path / "x.safetensors"), state)


def test_safetensors_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "x.safetensors").write_bytes(b"whatever")
    with pytest.raises(UserError, match=r"needs the package safetensors\npip install .*(safetensors|export)") as error:
        read_state_dict(tmp_path / "x.safetensors")
    assert "x.safetensors" in message_of(error)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="weights file not found") as error:
        read_state_dict(tmp_path / "gone.pth")
    assert str(tmp_path / "gone.pth") in message_of(error)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "html"])
def test_a_damaged_file(tmp_path, suffix, damage):
    path = tmp_path / f"x{suffix}"
    torch.save(small_resnet().state_dict(), path)
    content = {"empty": b"", "half": path.read_bytes()[:5000], "text": b"hello\n", "html": b"<html>404</html>"}
    path.write_bytes(content[damage])
    with pytest.raises(UserError, match="not a weights file") as error:
        read_state_dict(path)
    assert str(path) in message_of(error)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"state_dict": {}}, torch.ones(2)])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no weights found") as error:
        read_state_dict(tmp_path / "x.pth")
    message_of(error)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file_format", ["zip", "legacy", "pickle"])
def test_code_in_a_file_never_runs(tmp_path, file_format):
    path, marker = tmp_path / "x.pth", tmp_path / "executed"
    content = {"state_dict": small_resnet().state_dict() if file_format != "pickle" else {}, "extra": Malicious(marker)}
    if file_format == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")
    with pytest.raises(UserError, match="refused") as error:
        read_state_dict(path)
    assert not marker.exists()
    assert str(path) in message_of(error) and "torch.save(model.state_dict()" in str(error.value)
    if file_format != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists(), "the file is not malicious"


def test_a_pickled_model_is_refused_with_the_fix(tmp_path):
    torch.save(small_resnet(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"refused[^\n]*\n.*torch\.save\(model\.state_dict\(\)"):
        read_state_dict(tmp_path / "x.pth")


# ---------------------------------------------------------------- sources


def test_a_path(tmp_path):
    source, target = small_resnet(), small_resnet()
    torch.save(source.state_dict(), tmp_path / "x.pth")
    message = load_pretrained(target, str(tmp_path / "x.pth"), no_download)
    assert equal_states(target.state_dict(), source.state_dict())
    assert str(tmp_path / "x.pth") in message and f"{len(source.state_dict())} tensors" in message


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    torch.save(small_resnet().state_dict(), tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for weights in ("weights", "./weights", "~/weights"):
        assert weights in load_pretrained(small_resnet(), weights, no_download)


@pytest.mark.parametrize("weights", ["gone.pth", "runs/gone", "model.v2.safetensors"])
def test_a_name_that_looks_like_a_path(weights):
    with pytest.raises(UserError, match="weights file not found") as error:
        load_pretrained(small_resnet(), weights, no_download)
    assert weights in message_of(error)


@pytest.mark.parametrize("scheme", ["http", "https", "file"])
def test_a_url(tmp_path, scheme):
    source, target, requests = small_resnet(), small_resnet(), []
    torch.save(source.state_dict(), tmp_path / "x.pth")
    url = f"{scheme}://example.org/x.pth"
    load_pretrained(target, url, lambda u: requests.append(u) or tmp_path / "x.pth")
    assert requests == [url]
    assert equal_states(target.state_dict(), source.state_dict())


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("weights", ["ResNet18_Weights.IMAGENET1K_V1", "IMAGENET1K_V1", "DEFAULT"])
def test_a_torchvision_name(resnet18_file, weights):
    requests = []
    target = resnet18(num_classes=5)
    fc = target.fc.weight.clone()
    message = load_pretrained(target, weights, lambda url: requests.append(url) or resnet18_file)
    assert "ResNet18_Weights.IMAGENET1K_V1" in message and "120 tensors" in message and "1000" in message
    assert requests == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]
    assert equal_states(target.state_dict(), read_state_dict(resnet18_file), except_prefix="fc.")
    assert torch.equal(target.fc.weight, fc)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_a_short_name_selects_the_weights_of_the_depth(depth):
    class AskedError(Exception):
        pass

    def fetch(url: str) -> Path:
        raise AskedError(url)

    with torch.device("meta"):
        target = getattr(models, f"resnet{depth}")()
    with pytest.raises(AskedError, match=f"/resnet{depth}-"):
        load_pretrained(target, "IMAGENET1K_V1", fetch)


def test_a_torchvision_model_needs_a_full_name(resnet18_file):
    target = torchvision.models.resnet18(num_classes=2)
    message = load_pretrained(target, "ResNet18_Weights.DEFAULT", lambda url: resnet18_file)
    assert "new head for 2 classes" in message
    assert equal_states(target.state_dict(), read_state_dict(resnet18_file), except_prefix="fc.")
    with pytest.raises(UserError, match="full name") as error:
        load_pretrained(target, "DEFAULT", no_download)
    message_of(error)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [({"shortcut": "A"}, "shortcut A"), ({"stem": "cifar"}, "cifar stem"), ({"layers": [2, 2, 2, 1]}, "2, 2, 2, 1")],
)
def test_a_short_name_without_matching_weights(arguments, cause):
    with torch.device("meta"):
        target = ResNet(**({"block": "basic", "layers": [2, 2, 2, 2]} | arguments))
    with pytest.raises(UserError, match=cause) as error:
        load_pretrained(target, "DEFAULT", no_download)
    message_of(error)


@pytest.mark.parametrize("weights", ["DEFAULT", "ResNet50_Weights.IMAGENET1K_V1"])
def test_weights_of_v1_5_do_not_match_v1(weights):
    with torch.device("meta"):
        target = ResNet("bottleneck", [3, 4, 6, 3], variant="v1")
    with pytest.raises(UserError, match=r"v1\.5") as error:
        load_pretrained(target, weights, no_download)
    message_of(error)


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        ("IMAGENET1K_V2", "did you mean ResNet18_Weights.IMAGENET1K_V1"),
        ("ResNet18_Weights.IMAGENET1K_V7", "available: ResNet18_Weights.IMAGENET1K_V1"),
        ("ResNet18_Weihgts.DEFAULT", "did you mean ResNet18_Weights.DEFAULT"),
        ("nonsense", "available: ResNet18_Weights.IMAGENET1K_V1"),
        ("No_Such.THING", "available: a path, a URL"),
    ],
)
def test_unknown_names_get_a_suggestion(weights, hint):
    with torch.device("meta"):
        target = resnet18()
    with pytest.raises(UserError) as error:
        load_pretrained(target, weights, no_download)
    message = message_of(error)
    assert weights in message and hint in message


# ---------------------------------------------------------------- fitting


class PytorchCifarBlock(nn.Module):
    """A block of the CIFAR-10 ResNets of popular repositories."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        self.downsamples, self.padding = stride > 1, planes // 4

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.downsamples:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding), "constant", 0)
        return functional.relu(out + self.shortcut(x))


class PytorchCifarResNet(nn.Module):
    """CIFAR-10 ResNet with 8 layers of such a repository; its keys are `conv1 … layer1.0.conv1 … linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(PytorchCifarBlock(16, 16, 1))
        self.layer2 = nn.Sequential(PytorchCifarBlock(16, 32, 2))
        self.layer3 = nn.Sequential(PytorchCifarBlock(32, 64, 2))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(functional.avg_pool2d(out, out.size(3)).flatten(1))


def test_checkpoints_of_pytorch_cifar(tmp_path):
    torch.manual_seed(0)
    source = nn.DataParallel(PytorchCifarResNet())
    images = torch.randn(8, 3, 32, 32)
    source(images)  # gives BatchNorm running statistics that differ from the initial ones
    state = source.state_dict()
    assert {"module.conv1.weight", "module.layer1.0.conv1.weight", "module.linear.bias"} <= state.keys()
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet8.th")

    logits = {}
    for zero_pad in ("both", "end"):
        target = cifar_resnet(8, shortcut="A", zero_pad=zero_pad)
        load_pretrained(target, str(tmp_path / "resnet8.th"), no_download)
        logits[zero_pad] = target.eval()(images)
    torch.testing.assert_close(logits["both"], source.eval()(images))
    assert not torch.allclose(logits["end"], logits["both"], atol=1e-3)


def test_key_names_of_other_projects(tmp_path):
    source, target = small_resnet(), small_resnet()
    state = {key.replace("downsample.", "shortcut."): value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    load_pretrained(target, str(tmp_path / "x.pth"), no_download)
    assert equal_states(target.state_dict(), source.state_dict())

    source, target = (torchvision.models.DenseNet(4, (1, 1), 8, num_classes=3) for _ in range(2))
    state = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "dense.pth")
    load_pretrained(target, str(tmp_path / "dense.pth"), no_download)
    assert equal_states(target.state_dict(), source.state_dict())


def test_files_without_num_batches_tracked(tmp_path):
    state = {key: value for key, value in small_resnet().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "x.pth")
    load_pretrained(small_resnet(), str(tmp_path / "x.pth"), no_download)


def break_missing(state: dict[str, Tensor]) -> None:
    del state["layer1.0.conv1.weight"], state["bn1.bias"]


def break_unexpected(state: dict[str, Tensor]) -> None:
    state["layer9.weight"] = torch.ones(1)


def break_shape(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = torch.ones(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("damage", "counts", "first"),
    [
        (break_missing, "2 keys missing, 0 unexpected, 0 with another shape", "missing bn1.bias"),
        (break_unexpected, "0 keys missing, 1 unexpected, 0 with another shape", "unexpected layer9.weight"),
        (
            break_shape,
            "0 keys missing, 0 unexpected, 1 with another shape",
            "conv1.weight is (4, 1, 3, 3) in the file, (4, 3, 3, 3) in the model",
        ),
    ],
)
@pytest.mark.parametrize("classes", [5, 7])
def test_weights_of_another_model(tmp_path, damage, counts, first, classes):
    state, target = small_resnet().state_dict(), small_resnet(classes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    damage(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        load_pretrained(target, str(tmp_path / "x.pth"), no_download)
    message = message_of(error)
    assert str(tmp_path / "x.pth") in message and "ResNet(basic, [1, 1]" in message
    assert counts in message and message.endswith(f"the first: {first}")
    assert equal_states(target.state_dict(), before), "a refused file must not change the model"


@pytest.mark.parametrize("prefix", ["", "net.", "model.", "encoder.", "module.encoder_q."])
def test_a_network_trained_without_labels(tmp_path, prefix):
    source, target = small_resnet(), small_resnet(7)
    head = target.fc.weight.clone()
    state = {prefix + key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    others = {f"{prefix}fc.0.weight": torch.ones(3, 3), "predictor.weight": torch.ones(2)} if prefix else {}
    torch.save({"state_dict": state | others, "epoch": 3}, tmp_path / "x.pth")
    message = load_pretrained(target, str(tmp_path / "x.pth"), no_download)
    assert equal_states(target.state_dict(), source.state_dict(), except_prefix="fc.")
    assert torch.equal(target.fc.weight, head)
    assert "36 tensors loaded" in message and "new head for 7 classes (the file has none)" in message
    assert ("predictor (1)" in message) == bool(prefix)


def test_what_is_missing_behind_a_prefix_is_named(tmp_path):
    state = {f"trunk.{key}": value for key, value in small_resnet().state_dict().items() if key != "bn1.weight"}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"does not match.*: 1 keys missing.*\nthe first: missing bn1\.weight") as error:
        load_pretrained(small_resnet(), str(tmp_path / "x.pth"), no_download)
    message_of(error)


def test_options_and_metrics_of_other_programs(tmp_path):
    options = Namespace(lr=0.1, arch="resnet18", output=tmp_path)
    content = {"model": small_resnet().state_dict(), "args": options, "best": np.float64(76.5), "n": np.int64(3)}
    torch.save(content, tmp_path / "x.pth")
    assert equal_states(read_state_dict(tmp_path / "x.pth"), content["model"])


def test_another_object_in_a_file_is_named(tmp_path):
    torch.save({"model": small_resnet().state_dict(), "timer": Timer()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"refused: it contains tests\.models\.test_pretrained\.Timer,") as error:
        read_state_dict(tmp_path / "x.pth")
    message_of(error)


class Timer:
    """An object of a training program."""


def own_file(path: Path, names: list[str] | None, state: dict[str, Tensor]) -> str:
    """Writes the part of a checkpoint of this project that holds the weights and the class names."""
    backbone = {f"backbone.{key}": value for key, value in state.items()}
    torch.save({"state_dict": backbone, "hyper_parameters": {"class_names": names}}, path)
    return str(path)


def test_known_classes_keep_their_rows(tmp_path):
    source, target = small_resnet(3), small_resnet(4)
    initial = target.fc.weight.clone()
    file = own_file(tmp_path / "best.ckpt", ["ant", "bee", "cat"], source.state_dict())
    message = load_pretrained(target, file, no_download, ["bee", "cat", "lynx", "ant"])
    assert torch.equal(target.fc.weight[[3, 0, 1]], source.fc.weight)
    assert torch.equal(target.fc.bias[[3, 0, 1]], source.fc.bias)
    assert torch.equal(target.fc.weight[2], initial[2])
    assert equal_states(target.state_dict(), source.state_dict(), except_prefix="fc.")
    assert "the head keeps 3 of 4 classes, new: lynx" in message


def test_classes_in_another_order_are_found_by_name(tmp_path):
    source, target = small_resnet(3), small_resnet(3)
    file = own_file(tmp_path / "best.ckpt", ["ant", "bee", "cat"], source.state_dict())
    load_pretrained(target, file, no_download, ["cat", "bee", "ant"])
    assert torch.equal(target.fc.weight[[2, 1, 0]], source.fc.weight)
    # Without names nothing is known about the order.
    load_pretrained(target, own_file(tmp_path / "x.ckpt", None, source.state_dict()), no_download, ["c", "b", "a"])
    assert torch.equal(target.fc.weight, source.fc.weight)


def test_class_names_of_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    source, target = small_resnet(2), small_resnet(2)
    save_weights(source, tmp_path / "x.safetensors", {"classes": '["ant", "bee"]'})
    load_pretrained(target, str(tmp_path / "x.safetensors"), no_download, ["bee", "ant"])
    assert torch.equal(target.fc.weight[[1, 0]], source.fc.weight)


def test_a_network_of_a_head_only(tmp_path):
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)) for _ in range(2)]
    torch.save(networks[0].state_dict(), tmp_path / "linear.pth")
    load_pretrained(networks[1], str(tmp_path / "linear.pth"), no_download)
    assert equal_states(networks[0].state_dict(), networks[1].state_dict())


def test_images_that_the_weights_were_trained_on(tmp_path):
    names = [tmp_path / f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        name.write_text(str(number))
    file = tmp_path / "best.ckpt"
    backbone = {f"backbone.{key}": value for key, value in small_resnet(3).state_dict().items()}
    torch.save({"state_dict": backbone, METADATA_KEY: {"data": {"digests": {"train": fingerprints(names[:3])}}}}, file)
    for val, test, said in ((names[2:4], names[1:5], "1 of 2 val images and 2 of 4 test images"), (names[3:], [], "")):
        digests = {"train": fingerprints(names), "val": fingerprints(val), "test": fingerprints(test)}
        message = load_pretrained(small_resnet(3), str(file), no_download, digests=digests)
        assert said in message and message.count("\n") == (2 if said else 0)
