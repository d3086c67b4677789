"""The papers' networks in PyTorch that torchvision does not have, under the names that the trainer uses.

Post-activation networks for CIFAR-10 and plain ones follow akamaster/pytorch_resnet_cifar10, ResNeXt-29
facebookresearch/ResNeXt, wide ones szagoruyko/wide-residual-networks, pre-activation ones
KaimingHe/resnet-1k-layers, airbench KellerJordan/cifar10-airbench. `make` gives any network of the trainer, torchvision's where it has it.
"""

import torch
import torchvision
from torch import nn
import torch.nn.functional as F


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class PostActivation(nn.Module):
    """A basic block or bottleneck: a convolution, then its norm. `shortcut`: projection, padding, absent."""

    def __init__(self, inputs, width, outputs, stride, groups, shortcut, bottleneck):
        super().__init__()
        kernels = [(inputs, width, 3, stride, 1), (width, outputs, 3, 1, 1)]
        if bottleneck:
            kernels = [(inputs, width, 1, 1, 1), (width, width, 3, stride, groups),
                       (width, outputs, 1, 1, 1)]
        for number, kernel in enumerate(kernels, 1):
            self.add_module(f"conv{number}", conv(*kernel))
            self.add_module(f"bn{number}", nn.BatchNorm2d(kernel[1]))
        self.count, self.kind, self.added = len(kernels), shortcut, outputs - inputs
        self.stride = stride
        if shortcut == "projection" and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def beside(self, x):
        if hasattr(self, "shortcut"):
            return self.shortcut(x)
        if self.stride == 1 and self.added == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.added // 2, self.added // 2))

    def forward(self, x):
        out = x
        for number in range(1, self.count + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < self.count:
                out = F.relu(out)
        return F.relu(out if self.kind == "absent" else out + self.beside(x))


class PreActivation(nn.Module):
    """A norm, then its convolution. Where the shape changes, the projection shares the first norm."""

    def __init__(self, inputs, width, outputs, stride, groups, shortcut, bottleneck):
        super().__init__()
        kernels = [(inputs, width, 3, stride), (width, outputs, 3)]
        if bottleneck:
            kernels = [(inputs, width, 1, stride), (width, width, 3), (width, outputs, 1)]
        for number, kernel in enumerate(kernels, 1):
            self.add_module(f"bn{number}", nn.BatchNorm2d(kernel[0]))
            self.add_module(f"conv{number}", conv(*kernel))
        self.count = len(kernels)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        beside = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        for number in range(2, self.count + 1):
            out = getattr(self, f"conv{number}")(F.relu(getattr(self, f"bn{number}")(out)))
        return out + beside


class Stages(nn.Module):
    def __init__(self, block, blocks, channels, width, outputs, stem, classes, *, groups=1,
                 shortcut="projection", bottleneck=False):
        super().__init__()
        kernel, stride = {"notes": (3, 2), "cifar": (3, 1), "imagenet": (7, 2)}[stem]
        self.conv1 = conv(3, channels, kernel, stride)
        self.pools, self.pre = stem != "cifar", block is PreActivation
        if not self.pre:
            self.bn1 = nn.BatchNorm2d(channels)
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if index == 0 and stage > 0 else 1
                layers.append(block(channels, width << stage, outputs << stage, stride, groups,
                                    shortcut, bottleneck))
                channels = outputs << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.count = len(blocks)
        if self.pre:
            self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.conv1(x)
        if not self.pre:
            x = F.relu(self.bn1(x))
        if self.pools:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.count):
            x = getattr(self, f"layer{stage + 1}")(x)
        if self.pre:
            x = F.relu(self.bn(x))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class SmallVgg(nn.Module):
    """VGG-19 for small images: torchvision's features, and one linear layer."""

    def __init__(self, batch_norm: bool, classes: int):
        super().__init__()
        self.features = torchvision_model("vgg19_bn" if batch_norm else "vgg19", classes).features
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class AirbenchGroup(nn.Module):
    """Two convolutions; `residual`: three, and a shortcut past the last two."""

    def __init__(self, inputs: int, outputs: int, residual: bool, momentum: float):
        super().__init__()
        self.count = 3 if residual else 2
        for number in range(1, self.count + 1):
            conv = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
            norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=momentum)
            norm.weight.requires_grad = False
            self.add_module(f"conv{number}", conv)
            self.add_module(f"norm{number}", norm)
            inputs = outputs

    def forward(self, x):
        x = shortcut = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        x = self.norm2(self.conv2(x))
        if self.count == 3:
            x = shortcut + self.norm3(self.conv3(F.gelu(x)))
        return F.gelu(x)


class Times(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


# name: channels of each group, whether it is residual, momentum of batch norm
AIRBENCH = {
    "airbench94": ([64, 256, 256], False, 0.4),
    "airbench95": ([128, 384, 384], False, 0.4),
    "airbench96": ([128, 384, 512], True, 0.1),
}


def airbench(name: str, classes: int) -> nn.Module:
    widths, *options = AIRBENCH[name]
    groups = [AirbenchGroup(*pair, *options) for pair in zip([24, *widths], widths)]
    net = nn.Sequential(
        nn.Conv2d(3, 24, 2), nn.GELU(), *groups,
        nn.MaxPool2d(3), nn.Flatten(), nn.Linear(widths[-1], classes, bias=False), Times(1 / 9),
    )
    net[0].weight.requires_grad = False
    return net


def torchvision_model(name: str, classes: int) -> nn.Module:
    options = {"init_weights": False, "dropout": 0.0} if name.startswith("vgg") else {}
    return getattr(torchvision.models, name)(num_classes=classes, **options)


SHALLOW, DEEP = [3, 4, 6, 3], [3, 4, 23, 3]
# name: block, blocks per stage, channels after the stem, width, outputs, options
STAGES = {
    "resnet18": (PostActivation, [2, 2, 2, 2], 64, 64, 64, {}),
    "resnet34": (PostActivation, SHALLOW, 64, 64, 64, {}),
    "resnet50": (PostActivation, SHALLOW, 64, 64, 256, {"bottleneck": True}),
    "resnet200": (PostActivation, [3, 24, 36, 3], 64, 64, 256, {"bottleneck": True}),
    "resnext101_32x4d": (PostActivation, DEEP, 64, 128, 256, {"bottleneck": True, "groups": 32}),
    "resnet101_wider": (PostActivation, DEEP, 64, 100, 256, {"bottleneck": True}),
    "resnext29_8x64d": (PostActivation, [3] * 3, 64, 512, 256, {"bottleneck": True, "groups": 8}),
    "resnext29_16x64d": (PostActivation, [3] * 3, 64, 1024, 256, {"bottleneck": True, "groups": 16}),
    "plain18": (PostActivation, [2, 2, 2, 2], 64, 64, 64, {"shortcut": "absent"}),
    "plain34": (PostActivation, SHALLOW, 64, 64, 64, {"shortcut": "absent"}),
    "wrn16_8": (PreActivation, [2] * 3, 16, 128, 128, {}),
    "wrn28_10": (PreActivation, [4] * 3, 16, 160, 160, {}),
    "preact_resnet18": (PreActivation, [2, 2, 2, 2], 64, 64, 64, {}),
    "preact_resnet110": (PreActivation, [18] * 3, 16, 16, 16, {}),
    "preact_resnet164": (PreActivation, [18] * 3, 16, 16, 64, {"bottleneck": True}),
    "preact_resnet1001": (PreActivation, [111] * 3, 16, 16, 64, {"bottleneck": True}),
}
for depth in [20, 32, 44, 56, 110]:
    blocks = [(depth - 2) // 6] * 3
    STAGES[f"resnet{depth}"] = (PostActivation, blocks, 16, 16, 16, {"shortcut": "padding"})
    STAGES[f"plain{depth}"] = (PostActivation, blocks, 16, 16, 16, {"shortcut": "absent"})
IN_TORCHVISION = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg19", "vgg19_bn",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
]


def make(name: str, stem: str, classes: int) -> nn.Module:
    """Torchvision's network where it has it; its stem is `imagenet`."""
    if stem == "imagenet" and name in IN_TORCHVISION:
        return torchvision_model(name, classes)
    if name.startswith("vgg"):
        return SmallVgg(name == "vgg19_bn", classes)
    if name in AIRBENCH:
        return airbench(name, classes)
    block, blocks, channels, width, outputs, options = STAGES[name]
    return Stages(block, blocks, channels, width, outputs, stem, classes, **options)
