"""The sections [data] and [augmentation] of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from softkin_training.config_section import Section, Width, require

TABLES = ("parquet", "csv", "hub")
IMAGES = ("npz", "folder", "parquet", "hub")
DATA_KEYS: dict[str, tuple[str, ...]] = {
    "test_path": ("parquet", "csv"),
    "subset": ("hub",),
    "revision": ("hub",),
    "train_split": ("hub",),
    "test_split": ("hub",),
    "label_column": TABLES,
    "input_columns": TABLES,
    "name_column": TABLES,
    "image_size": IMAGES,
    "image_mode": IMAGES,
}
"""Keys of [data] that some sources alone read."""


class DataConfig(Section):
    """Where the rows come from and how they are split."""

    source: Literal["digits", "npz", "folder", "parquet", "csv", "hub"]
    """`digits`: scikit-learn's 1,797 8x8 digits, needs no file; `npz`: a file of arrays; `folder`: images, one folder
    per class; `parquet`, `csv`: tables; `hub`: a data set of the Hugging Face hub. The last four need the extra
    `datasets`."""
    path: str = ""
    """npz with x_train, y_train, x_test, y_test, class_names; the folder; the table, or tables by a pattern; or the
    data set's OWNER/NAME."""
    test_path: str = ""
    """Table of test rows; parquet and csv."""
    subset: str = ""
    """The data set's subset, which the hub also calls configuration; hub only."""
    revision: str = ""
    """Branch, tag or commit; hub only."""
    train_split: str = "train"
    """Hub only."""
    test_split: str = "test"
    """Hub only; empty where there is none, then test_rows are set aside."""
    label_column: str = "label"
    """Tables and hub."""
    input_columns: list[str] = []
    """Tables and hub: columns that hold the inputs; empty = all but the labels and names."""
    name_column: str = ""
    """Tables and hub: column that names rows, for [evidence](evidence.md): a key, a path; empty = none."""
    image_size: list[Width] = []
    """[H, W] to which images are resized; empty = as they are, and all must be of one size."""
    image_mode: Literal["RGB", "L"] = "RGB"
    """What images are converted to: colour, rows [H, W, 3], or grey, rows [H, W]."""
    known_classes: list[Annotated[int, Field(ge=0)]] = []
    """Classes to train on, relabelled 0..K-1 in this order; empty = all. The others become outliers."""
    calibration_rows: Width
    """Rows taken from the training split for calibration; the smallest possible p-value is 1 / (this + 1)."""
    test_rows: Annotated[int, Field(ge=0)] = 0
    """Rows held out for testing where the source brings no test split."""
    outliers: dict[str, str] = {}
    """Name -> npz whose x_test, table whose rows, or folder whose images are outliers; for evaluation only."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        require(len(set(self.known_classes)) == len(self.known_classes), "known_classes", "must not repeat a class")
        require(len(self.known_classes) != 1, "known_classes", "needs at least 2 classes, or none for all of them")
        require(len(self.image_size) in (0, 2), "image_size", "must be [height, width], or empty")
        require(all(self.outliers.values()), "outliers", "must name a file or a folder for each set")
        for key, sources in DATA_KEYS.items():
            unread = self.source not in sources and getattr(self, key) != DataConfig.model_fields[key].get_default(
                call_default_factory=True
            )
            require(not unread, key, f"belongs to source = {' or '.join(map(repr, sources))}; leave it out")
        if self.source == "digits":
            require(not self.path, "path", "belongs to source = 'npz'; leave it out for the embedded digits")
            require(self.test_rows > 0, "test_rows", "must be at least 1: the digits bring no test split of their own")
        if self.source == "npz":
            require(self.test_rows == 0, "test_rows", "must be 0: an npz file brings its own x_test")
        if self.source in ("parquet", "csv", "hub"):
            own, key = (self.test_split, "test_split") if self.source == "hub" else (self.test_path, "test_path")
            allowed = f"must be at least 1 where {key} is empty, and 0 where it names one"
            require(bool(own) != bool(self.test_rows), "test_rows", allowed)
        require(len(set(self.input_columns)) == len(self.input_columns), "input_columns", "must not repeat a column")
        leaks = self.source in TABLES and self.label_column in self.input_columns
        require(not leaks, "input_columns", f"must not hold the labels, {self.label_column!r}")
        labels = self.source in TABLES and self.name_column == self.label_column
        require(not labels, "name_column", f"must not be the labels, {self.label_column!r}")
        return self


class AugmentationConfig(Section):
    """Random changes of training batches, drawn anew for each row each time; nothing else is changed, ever."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels of zeros on each side, of which a crop of the image's size is taken."""
    horizontal_flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of a mirror image."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turned by an angle between minus and plus this, bilinearly; what comes in from outside is zero."""
