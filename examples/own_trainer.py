"""Train a teacher, a generator and a student in a Lightning script with its own trainers and loaders.

Run ``python examples/own_trainer.py``: about a minute on one CPU core.
"""

from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DistillationLoss, GeneratorObjective
from kegnet_pl.networks import MLP, Decoder, DenseGenerator
from kegnet_pl.sources import GeneratorSource
from kegnet_pl.training import GeneratorModule, StudentModule, TeacherModule


def fit(module: LightningModule, data: Any, epochs: int, callback: Callback, **options: Any) -> Trainer:
    """Fit a module; the trainer is an ordinary one, with any of its options."""
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=CSVLogger("logs", name=type(module).__name__),
        log_every_n_steps=5, callbacks=[callback], **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def main(epochs: int = 30) -> dict[str, float]:
    """Print and return the accuracies on real test data."""
    seed_everything(0)
    adam = partial(torch.optim.Adam, lr=3e-3)
    digits = load_digits()
    x, y = torch.tensor(digits.data).float() / 8 - 1, torch.tensor(digits.target)
    real = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True)
    test = DataLoader(TensorDataset(x[1200:], y[1200:]), batch_size=64)

    teacher = TeacherModule(MLP(64, 10, width=64, blocks=2), adam)
    trainer = fit(teacher, real, epochs, EarlyStopping("train/loss", patience=3))
    accuracies = {"teacher": trainer.test(teacher, test, verbose=False)[0]["test/accuracy"]}

    # From here on there is no real data but for the test. The generator draws its noise itself.
    objective = GeneratorObjective(
        {"classifier": ClassifierLoss(), "decoder": DecoderLoss()}, {"classifier": 1.0, "decoder": 1.0}
    )
    generator = GeneratorModule(
        DenseGenerator(64, 10, noise_dim=10), Decoder((64,), 10, blocks=2), teacher.network, objective, adam,
        lr_scheduler="cosine", batch_size=64, steps_per_epoch=20,
    )  # fmt: skip
    fit(generator, None, epochs, LearningRateMonitor(), gradient_clip_val=1.0)

    samples = GeneratorSource([generator.generator]).sample(4000, seed=0)
    logits = teacher.network.eval()(samples).detach()
    labelled = DataLoader(TensorDataset(samples, logits), batch_size=64, shuffle=True)
    student = StudentModule(MLP(64, 10, width=16, blocks=1), DistillationLoss(temperature=4.0), adam)
    trainer = fit(student, labelled, epochs, EarlyStopping("train/loss"), accumulate_grad_batches=2)
    accuracies["student"] = trainer.test(student, test, verbose=False)[0]["test/accuracy"]

    for name, value in accuracies.items():
        print(f"{name}: {value:.1%} of the test images")
    return accuracies


if __name__ == "__main__":
    main()
