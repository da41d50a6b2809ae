"""Every source of weights, every way it can go wrong, and the heads of other people's nets."""

import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from resnet_pl import models
from resnet_pl.models import (
    ResNet,
    cifar_resnet,
    find_classifier,
    load_pretrained,
    read_state_dict,
    reset_classifier,
    resnet18,
)
from resnet_pl.utils import UserError


def net(num_classes: int = 5, **kwargs: Any) -> ResNet:
    return ResNet("basic", [1, 1], num_classes, **({"stem": "cifar", "width": 4} | kwargs))


def no_fetch(url: str) -> Path:
    raise AssertionError(f"nothing to download, but {url} was asked for")


def same(a: dict[str, Tensor], b: dict[str, Tensor], but: str = "no key") -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a if not key.startswith(but))


def two_lines(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    return message


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("nesting", ["", "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_usual_nestings_and_prefixes(tmp_path, nesting, prefix):
    state = net().state_dict()
    content = {prefix + key: value for key, value in state.items()}
    torch.save({nesting: content, "epoch": 3} if nesting else content, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), state)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone._orig_mod.", "_orig_mod.backbone."])
def test_only_the_backbone_of_a_classifiers_checkpoint(tmp_path, prefix):
    state = net().state_dict()
    extra = {"criterion.weight": torch.ones(5), "train_top1.correct": torch.zeros(1)}
    content = {"state_dict": {prefix + k: v for k, v in state.items()} | extra, "hyper_parameters": {"lr": 0.1}}
    torch.save(content, tmp_path / "last.ckpt")
    assert same(read_state_dict(tmp_path / "last.ckpt"), state)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = net().state_dict()
    safetensors.save_file(state, tmp_path / "x.safetensors")
    assert same(read_state_dict(tmp_path / "x.safetensors"), state)


def test_safetensors_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "x.safetensors").write_bytes(b"whatever")
    with pytest.raises(UserError, match="pip install safetensors") as error:
        read_state_dict(tmp_path / "x.safetensors")
    assert "x.safetensors" in two_lines(error)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file") as error:
        read_state_dict(tmp_path / "gone.pth")
    assert str(tmp_path / "gone.pth") in two_lines(error)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "html"])
def test_a_damaged_file(tmp_path, suffix, damage):
    path = tmp_path / f"x{suffix}"
    torch.save(net().state_dict(), path)
    content = {"empty": b"", "half": path.read_bytes()[:5000], "text": b"hello\n", "html": b"<html>404</html>"}
    path.write_bytes(content[damage])
    with pytest.raises(UserError, match="not a file of weights") as error:
        read_state_dict(path)
    assert str(path) in two_lines(error)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"state_dict": {}}, torch.ones(2)])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no weights") as error:
        read_state_dict(tmp_path / "x.pth")
    two_lines(error)


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_never_runs(tmp_path, form):
    path, mark = tmp_path / "x.pth", tmp_path / "it ran"
    content = {"state_dict": net().state_dict() if form != "pickle" else {}, "extra": Hostile(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="refused") as error:
        read_state_dict(path)
    assert not mark.exists()
    assert str(path) in two_lines(error) and "torch.save(model.state_dict()" in str(error.value)
    if form != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists(), "the file was harmless, so the test proved nothing"


def test_a_whole_pickled_net_is_refused_with_the_way_out(tmp_path):
    torch.save(net(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"refused[^\n]*\n.*torch\.save\(model\.state_dict\(\)"):
        read_state_dict(tmp_path / "x.pth")


# ---------------------------------------------------------------- sources


def test_a_path(tmp_path):
    source, target = net(), net()
    torch.save(source.state_dict(), tmp_path / "x.pth")
    message = load_pretrained(target, str(tmp_path / "x.pth"), no_fetch)
    assert same(target.state_dict(), source.state_dict())
    assert message == f"weights {tmp_path / 'x.pth'}: {len(source.state_dict())} tensors loaded"


def test_a_path_from_here_and_from_home(tmp_path, monkeypatch):
    torch.save(net().state_dict(), tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for weights in ("weights", "./weights", "~/weights"):
        assert weights in load_pretrained(net(), weights, no_fetch)


@pytest.mark.parametrize("weights", ["gone.pth", "runs/gone", "model.v2.safetensors"])
def test_what_looks_like_a_path_is_one(weights):
    with pytest.raises(UserError, match="no such file") as error:
        load_pretrained(net(), weights, no_fetch)
    assert weights in two_lines(error)


@pytest.mark.parametrize("scheme", ["http", "https", "file"])
def test_a_url(tmp_path, scheme):
    source, target, asked = net(), net(), []
    torch.save(source.state_dict(), tmp_path / "x.pth")
    url = f"{scheme}://example.org/x.pth"
    load_pretrained(target, url, lambda u: asked.append(u) or tmp_path / "x.pth")
    assert asked == [url]
    assert same(target.state_dict(), source.state_dict())


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("weights", ["ResNet18_Weights.IMAGENET1K_V1", "IMAGENET1K_V1", "DEFAULT"])
def test_a_torchvision_name(resnet18_file, weights):
    asked = []
    target = resnet18(num_classes=5)
    fc = target.fc.weight.clone()
    message = load_pretrained(target, weights, lambda url: asked.append(url) or resnet18_file)
    assert message == (
        "weights ResNet18_Weights.IMAGENET1K_V1: 120 tensors loaded; new head for 5 classes (the file's has 1000)"
    )
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]
    assert same(target.state_dict(), read_state_dict(resnet18_file), but="fc.")
    assert torch.equal(target.fc.weight, fc)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_a_short_name_finds_the_depth(depth):
    class AskedError(Exception):
        pass

    def fetch(url: str) -> Path:
        raise AskedError(url)

    with torch.device("meta"):
        target = getattr(models, f"resnet{depth}")()
    with pytest.raises(AskedError, match=f"/resnet{depth}-"):
        load_pretrained(target, "IMAGENET1K_V1", fetch)


def test_a_torchvision_net_takes_a_full_name_only(resnet18_file):
    target = torchvision.models.resnet18(num_classes=2)
    message = load_pretrained(target, "ResNet18_Weights.DEFAULT", lambda url: resnet18_file)
    assert "new head for 2 classes" in message
    assert same(target.state_dict(), read_state_dict(resnet18_file), but="fc.")
    with pytest.raises(UserError, match="full name") as error:
        load_pretrained(target, "DEFAULT", no_fetch)
    two_lines(error)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [({"shortcut": "A"}, "shortcut A"), ({"stem": "cifar"}, "cifar stem"), ({"layers": [2, 2, 2, 1]}, "2, 2, 2, 1")],
)
def test_a_short_name_says_why_no_weights_fit(arguments, cause):
    with torch.device("meta"):
        target = ResNet(**({"block": "basic", "layers": [2, 2, 2, 2]} | arguments))
    with pytest.raises(UserError, match=cause) as error:
        load_pretrained(target, "DEFAULT", no_fetch)
    two_lines(error)


@pytest.mark.parametrize("weights", ["DEFAULT", "ResNet50_Weights.IMAGENET1K_V1"])
def test_weights_of_v1_5_are_not_for_v1(weights):
    with torch.device("meta"):
        target = ResNet("bottleneck", [3, 4, 6, 3], variant="v1")
    with pytest.raises(UserError, match=r"v1\.5") as error:
        load_pretrained(target, weights, no_fetch)
    two_lines(error)


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
def test_unknown_names_suggest(weights, hint):
    with torch.device("meta"):
        target = resnet18()
    with pytest.raises(UserError) as error:
        load_pretrained(target, weights, no_fetch)
    message = two_lines(error)
    assert weights in message and hint in message


# ---------------------------------------------------------------- fitting


class WidespreadBlock(nn.Module):
    """A block of the CIFAR-10 nets that many weights on the web are of."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        self.grows, self.quarter = stride > 1, planes // 4

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.quarter, self.quarter), "constant", 0)
        return functional.relu(out + self.shortcut(x))


class WidespreadNet(nn.Module):
    """Such a net of 8 layers; its keys are `conv1 … layer1.0.conv1 … linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(WidespreadBlock(16, 16, 1))
        self.layer2 = nn.Sequential(WidespreadBlock(16, 32, 2))
        self.layer3 = nn.Sequential(WidespreadBlock(32, 64, 2))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(functional.avg_pool2d(out, out.size(3)).flatten(1))


def test_the_widespread_cifar_nets(tmp_path):
    torch.manual_seed(0)
    source = nn.DataParallel(WidespreadNet())
    images = torch.randn(8, 3, 32, 32)
    source(images)  # else BatchNorm's running statistics would be those of any net
    state = source.state_dict()
    assert {"module.conv1.weight", "module.layer1.0.conv1.weight", "module.linear.bias"} <= state.keys()
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet8.th")

    logits = {}
    for zero_pad in ("both", "end"):
        target = cifar_resnet(8, shortcut="A", zero_pad=zero_pad)
        load_pretrained(target, str(tmp_path / "resnet8.th"), no_fetch)
        logits[zero_pad] = target.eval()(images)
    torch.testing.assert_close(logits["both"], source.eval()(images))
    assert not torch.allclose(logits["end"], logits["both"], atol=1e-3)


def test_old_names_of_others(tmp_path):
    source, target = net(), net()
    state = {key.replace("downsample.", "shortcut."): value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    load_pretrained(target, str(tmp_path / "x.pth"), no_fetch)
    assert same(target.state_dict(), source.state_dict())

    source, target = (torchvision.models.DenseNet(4, (1, 1), 8, num_classes=3) for _ in range(2))
    state = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", key): value for key, value in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "dense.pth")
    load_pretrained(target, str(tmp_path / "dense.pth"), no_fetch)
    assert same(target.state_dict(), source.state_dict())


def test_files_from_before_batchnorm_counted(tmp_path):
    state = {key: value for key, value in net().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "x.pth")
    load_pretrained(net(), str(tmp_path / "x.pth"), no_fetch)


def break_missing(state: dict[str, Tensor]) -> None:
    del state["layer1.0.conv1.weight"], state["bn1.bias"]


def break_unexpected(state: dict[str, Tensor]) -> None:
    state["layer9.weight"] = torch.ones(1)


def break_shape(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = torch.ones(4, 1, 3, 3)


def break_headless(state: dict[str, Tensor]) -> None:
    del state["fc.weight"], state["fc.bias"]


@pytest.mark.parametrize(
    ("damage", "counts", "first"),
    [
        (break_missing, "2 keys missing, 0 unexpected, 0 of another shape", "missing bn1.bias"),
        (break_unexpected, "0 keys missing, 1 unexpected, 0 of another shape", "unexpected layer9.weight"),
        (
            break_shape,
            "0 keys missing, 0 unexpected, 1 of another shape",
            "conv1.weight is (4, 1, 3, 3) in the file, (4, 3, 3, 3) in the net",
        ),
        (break_headless, "2 keys missing, 0 unexpected, 0 of another shape", "missing fc.weight"),
    ],
)
@pytest.mark.parametrize("classes", [5, 7])
def test_weights_of_another_net(tmp_path, damage, counts, first, classes):
    state, target = net().state_dict(), net(classes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    damage(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        load_pretrained(target, str(tmp_path / "x.pth"), no_fetch)
    message = two_lines(error)
    assert str(tmp_path / "x.pth") in message and "ResNet(basic, [1, 1]" in message
    assert counts in message and message.endswith(f"the first: {first}")
    assert same(target.state_dict(), before), "a refused file must leave the net alone"


# ---------------------------------------------------------------- heads

HEADS = {
    "resnet18": "fc",
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_32": "heads.head",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_torchvision_nets(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if "regnet" in name else "meta"):
        model = torchvision.models.get_model(name, weights=None, **options).eval()
        found, old = find_classifier(model)
        assert found == HEADS[name] and len(old.weight) == 1000
        assert not reset_classifier(model, 1000)
        assert model.get_submodule(found) is old
        assert reset_classifier(model, 7)
        new = model.get_submodule(found)
        size = 299 if name == "inception_v3" else 224
        with torch.no_grad():
            assert model(torch.empty(1, 3, size, size)).shape == (1, 7)
    assert type(new) is type(old) and (new.bias is None) == (old.bias is None)
    assert new.weight.device == old.weight.device


def test_our_net_remembers_its_classes():
    model = net(5).half()
    assert reset_classifier(model, 9)
    assert model.init_args["num_classes"] == 9
    assert model.fc.weight.dtype == torch.half
    ResNet(**model.init_args).load_state_dict(model.state_dict(), strict=True)


def test_a_net_without_a_head():
    model = net()
    model.fc = nn.Identity()
    with pytest.raises(UserError, match="ResNet: no classifier layer") as error:
        find_classifier(model)
    two_lines(error)
