"""Tabular data sets: UCI Shuttle, Pendigits and Letter, from the original files."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kegnet_pl.data.base import RealDataModule, Split, find_file, stratified_folds


class TableDataModule(RealDataModule):
    """Rows of features with a class, standardised to zero mean and unit variance over the training rows.

    Without a published test file, rows are split 7:1:2 into training, validation and test; otherwise the training file
    is split 7:1 (PAPER section 6). Splits keep the share of every class and depend on the seed.

    Args:
        root: Folder with the files, or a folder above it.
        args, options: See :class:`RealDataModule`.
    """

    train_file: ClassVar[str]
    test_file: ClassVar[str | None] = None
    delimiter: ClassVar[str | None] = None

    def __init__(self, *args: Any, root: str | Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self.root = Path(root)

    def _locate(self, file: str) -> Path:
        return find_file(
            self.root,
            [file, f"{self.name}/{file}", f"uci/{self.name}/{file}"],
            f"the UCI file {file}",
            "Download it from the UCI Machine Learning Repository (archive.ics.uci.edu) and unpack it.",
        )

    def prepare_data(self) -> None:
        """Check that all files exist."""
        for file in filter(None, (self.train_file, self.test_file)):
            self._locate(file)

    def _parse(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features ``(N, F)`` and classes ``(N,)`` from 0; by default the class is the last column."""
        return rows[:, :-1].astype(np.float64), rows[:, -1].astype(np.int64)

    def _read_file(self, file: str) -> Split:
        path = self._locate(file)
        try:
            rows = np.loadtxt(path, dtype=str, delimiter=self.delimiter, ndmin=2)
            x, y = self._parse(rows)
        except ValueError as error:
            raise ValueError(
                f"Expected rows of {self.input_shape[0]} features and a class in {path}, but it cannot be read "
                f"({error}). Download it again."
            ) from error
        if not len(x) or (x.shape[1],) != self.input_shape:
            raise ValueError(
                f"Expected rows of {self.input_shape[0]} features and a class in {path}, but got {len(x)} rows of "
                f"{x.shape[1]} features. Download it again, or set data.input_shape."
            )
        return Split(torch.from_numpy(x), torch.from_numpy(y))

    def read(self) -> dict[str, Split]:
        """Read, split and standardise the rows."""
        full = self._read_file(self.train_file)
        if self.test_file is None:
            train, val, test = (full[rows] for rows in stratified_folds(full.y, (0.7, 0.1, 0.2), self.seed))
        else:
            train, val = (full[rows] for rows in stratified_folds(full.y, (7 / 8, 1 / 8), self.seed))
            test = self._read_file(self.test_file)
        std, mean = torch.std_mean(train.x, dim=0, correction=0)
        std = torch.where(std > 0, std, 1.0)  # a constant feature stays constant
        return {
            part: Split(((split.x - mean) / std).float(), split.y)
            for part, split in {"train": train, "val": val, "test": test}.items()
        }


class Shuttle(TableDataModule):
    """Statlog (Shuttle), UCI id 148: 9 features, 7 classes, ``shuttle.trn`` and ``shuttle.tst``."""

    name, input_shape, classes = "shuttle", (9,), 7
    train_file, test_file = "shuttle.trn", "shuttle.tst"

    def _parse(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = super()._parse(rows)
        return x, y - 1


class Pendigits(TableDataModule):
    """Pen-Based Recognition of Handwritten Digits, UCI id 81: 16 features, 10 classes, ``pendigits.tra``, ``.tes``."""

    name, input_shape, classes = "pendigits", (16,), 10
    train_file, test_file, delimiter = "pendigits.tra", "pendigits.tes", ","


class Letter(TableDataModule):
    """Letter Recognition, UCI id 59: 16 features, 26 classes, ``letter-recognition.data``, no published split."""

    name, input_shape, classes = "letter", (16,), 26
    train_file, delimiter = "letter-recognition.data", ","

    def _parse(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        letters = np.array([ord(letter) - ord("A") if len(letter) == 1 else -1 for letter in rows[:, 0]])
        return rows[:, 1:].astype(np.float64), letters.astype(np.int64)
