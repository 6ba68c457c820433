"""A training small enough to be kept in the repository: two nets of a few numbers that learn in turn, as the trainer
leaves them on disk."""

import torch

from macular.train.trainer import Loop, Phase, fit

ROUNDS = 3


def phases():
    "A net of 11 numbers and one of 4, each with a batch a step"

    def made(name, *shape):
        net = torch.nn.Linear(*shape)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.linspace(-0.5, 0.5, p.numel()).reshape(p.shape))

        def loss(x):
            return net(x).square().mean(), {}

        return Phase(
            name,
            net,
            loss,
            lambda round: [torch.linspace(i, i + 1, 4 * shape[0]).reshape(4, -1) for i in range(2)],
            2,
            lr=0.01,
            decay=True,
        )

    return [made("discriminator", 3, 1), made("net", 4, 2)]


def train(folder, rounds=ROUNDS, **options):
    "Train, or resume what is in a folder"
    return fit(built := phases(), Loop(rounds), folder=folder, on_round=lambda n: {"so far": n}, **options), {
        p.name: p.trains for p in built
    }
