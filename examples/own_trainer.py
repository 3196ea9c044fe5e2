"""Train a teacher, a generator and a student with ordinary Lightning trainers and loaders, in half a minute."""

from functools import partial

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from kegnet_pl import SyntheticDataset
from kegnet_pl.losses import ClassifierLoss, DecoderLoss, DistillationLoss, GeneratorObjective
from kegnet_pl.networks import MLP, Decoder, DenseGenerator
from kegnet_pl.sources import GeneratorSource
from kegnet_pl.training import GeneratorModule, StudentModule, TeacherModule

seed_everything(0)
digits = load_digits()
x, y = torch.tensor(digits.data).float() / 8 - 1, torch.tensor(digits.target)
real, test = TensorDataset(x[:1200], y[:1200]), DataLoader(TensorDataset(x[1200:], y[1200:]), batch_size=64)
adam = partial(torch.optim.Adam, lr=3e-3)

teacher = TeacherModule(MLP(64, 10, width=64, blocks=2), adam)
trainer = Trainer(max_epochs=30, callbacks=[EarlyStopping("train/loss")])
trainer.fit(teacher, DataLoader(real, batch_size=64, shuffle=True))
teacher_accuracy = trainer.test(teacher, test)[0]["test/accuracy"]

# From here on there is no real data but for the test. The generator draws its noise itself.
terms, weights = {"classifier": ClassifierLoss(), "decoder": DecoderLoss()}, {"classifier": 1.0, "decoder": 1.0}
generator, decoder = DenseGenerator(64, 10, noise_dim=10), Decoder((64,), 10, blocks=2)
module = GeneratorModule(generator, decoder, teacher.network, GeneratorObjective(terms, weights), adam, batch_size=64)
Trainer(max_epochs=6, gradient_clip_val=1.0, callbacks=[LearningRateMonitor()]).fit(module)

samples = SyntheticDataset(GeneratorSource([generator]), teacher.network, 4000)
student = StudentModule(MLP(64, 10, width=16, blocks=1), DistillationLoss(temperature=4.0), adam)
trainer = Trainer(max_epochs=30, accumulate_grad_batches=2)
trainer.fit(student, DataLoader(samples, batch_size=64, shuffle=True))
student_accuracy = trainer.test(student, test)[0]["test/accuracy"]
