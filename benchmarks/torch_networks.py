"""The networks of step_cost.py in PyTorch, for cost.py."""

from torch import nn
from torch.nn import functional


def lenet():
    """`(encoder, makes a head)`."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
    )

    def head():
        return nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))

    return encoder, head


class Block(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        self.first = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(2))
        self.around = nn.Identity()
        if stride > 1:
            self.around = nn.Sequential(
                nn.Conv2d(before, filters, 1, stride, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x):
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.around(x))


def resnet18(width=16, size=64):
    """The same."""
    blocks, before = [], width
    for stage, stride in enumerate((1, 2, 2, 2)):
        filters = width * 2**stage
        blocks += [Block(before, filters, stride), Block(filters, filters, 1)]
        before = filters
    encoder = nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AvgPool2d(4),
        nn.Flatten(),
    )
    return encoder, lambda: nn.Linear(before * (size // 32) ** 2, 2)
