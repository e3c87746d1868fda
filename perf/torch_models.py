# SPDX-License-Identifier: Apache-2.0
"""perf/torch_compare's models and their data, all in memory before the clock runs.

Fashion-MNIST is read from Debian's dataset-fashion-mnist (or any folder of the four files). CIFAR is in no Debian package, so `cifarnet` gets the
same pictures, padded to 32 x 32 and three equal channels. `recommender` gets clicks drawn from a planted model: what can be learnt is known.
"""
import gzip
import pathlib

import torch
from torch import nn

DATA = "/usr/share/datasets/fashion-mnist"
TABLES, ROWS, WIDTH, NUMBERS = 8, 1000, 16, 13  # of the recommender: embeddings and plain features
CLICKS = 40000, 8000  # training and test examples
CLICK_SEED = 20200207


def idx(folder, name):
    """An idx file of bytes, packed or not."""
    path = pathlib.Path(folder) / name
    data = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(name + ".gz").read_bytes())
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def pictures(folder, side=28, channels=1):
    """(training images and labels), (test images and labels); pixels 0 to 1, zeros around them up to `side`."""
    made = []
    for name in ("train", "t10k"):
        images = idx(folder, f"{name}-images-idx3-ubyte").float() / 255
        border = (side - images.shape[1]) // 2
        images = nn.functional.pad(images, [border] * 4)[:, None].expand(-1, channels, -1, -1).contiguous()
        made.append((images, idx(folder, f"{name}-labels-idx1-ubyte").long()))
    return made


def clicks():
    """Features (categories, then numbers) and clicks, 1 or 0, of a logistic model: every category and number counts, and pairs of categories do."""
    source = torch.Generator().manual_seed(CLICK_SEED)
    made = []
    of_category = 0.7 * torch.randn(TABLES, ROWS, generator=source)
    hidden = torch.randn(TABLES, ROWS, 4, generator=source) / 2
    of_number = torch.randn(NUMBERS, generator=source) / 3
    for count in CLICKS:
        # squares of uniform numbers: some categories are much oftener than others, as in real logs
        categories = (torch.rand(count, TABLES, generator=source) ** 2 * ROWS).long()
        numbers = torch.randn(count, NUMBERS, generator=source)
        single = sum(of_category[table, categories[:, table]] for table in range(TABLES))
        pairs = sum((hidden[table, categories[:, table]] * hidden[table + 1, categories[:, table + 1]]).sum(1) for table in range(0, TABLES, 2))
        chance = torch.sigmoid(single + pairs + numbers @ of_number)
        made.append((torch.cat((categories.float(), numbers), 1), (torch.rand(count, generator=source) < chance).float()))
    return made


class Recommender(nn.Module):
    """Embeddings of the categories beside the plain numbers, then wide layers."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, WIDTH) for _ in range(TABLES))
        self.top = nn.Sequential(nn.Linear(TABLES * WIDTH + NUMBERS, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1))

    def forward(self, x):
        categories = x[:, :TABLES].long()
        found = [table(categories[:, number]) for number, table in enumerate(self.tables)]
        return self.top(torch.cat((*found, x[:, TABLES:]), 1))[:, 0]


def fc():
    """The network of the paper's experiments."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def cifarnet():
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


# name: how it is made, learning rate of the first step, what it is called in tables
MODELS = {
    "fc": (fc, 0.2, "784-1000-300-100-10"),
    "lenet": (lenet, 0.1, "LeNet-5, ReLU"),
    "cifarnet": (cifarnet, 0.1, "CifarNet (32 x 32 x 3: Fashion-MNIST padded, not CIFAR)"),
    "recommender": (Recommender, 0.2, "embeddings 8 x 1000 x 16, layers 141-1024-1024-1 (drawn clicks)"),
}


def dataset(name, folder):
    """(training x, y), (test x, y)."""
    if name == "recommender":
        return clicks()
    return pictures(folder, 32, 3) if name == "cifarnet" else pictures(folder)


def loss_of(name):
    return nn.functional.binary_cross_entropy_with_logits if name == "recommender" else nn.functional.cross_entropy


def right_of(output, labels):
    """How many are right."""
    guess = (output > 0).float() if output.dim() == 1 else output.argmax(1)
    return int((guess == labels).sum())
