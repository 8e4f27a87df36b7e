"""Parquet and CSV files and data sets of the Hugging Face hub, read by the `datasets` library.

One column holds labels, one or more hold inputs: encoded images, lists of numbers (nested ones are maps or images), or
plain numbers, one feature a column. Rows are read from the library's own Arrow tables through a memory map, decoded a
few at a time, and kept in Arrow again: at no time in memory as a whole.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, RecipeError, SoftkinError, listed
from softkin_training.data_config import DataConfig
from softkin_training.image_reader import ImageReader
from softkin_training.input_columns import InputColumns
from softkin_training.name_column import NameColumn
from softkin_training.row_cache import cached_rows, optional_package
from softkin_training.rows import Rows
from softkin_training.sources import Source
from softkin_training.stored_rows import rows_of

READ_AT_ONCE = 256
COLUMNS_SHOWN = 4
FIRST_ROWS = 10_000
"""The library decides by so many what a column of CSV holds."""
_SUBSETS = re.compile(r"(?:Config name is missing|BuilderConfig .* not found)\..*?vailable.*?: (\[.*?\])", re.DOTALL)
"""How the library says that there is no subset of a name, or that one of several must be named."""
_NUMBERS_DIFFER = ("truncated converting", "Schema at index")
"""How the library says that numbers are whole ones by the first rows, and others further down or in another file."""
_KINDS_DIFFER = (
    "Failed to parse string",
    "could not convert string to float",
    "invalid literal for int",
    "cannot safely convert passed user dtype",
)
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse")
_NO_NAME = re.compile(r"Unnamed: \d+|__index_level_\d+__")
"""What pandas calls columns without a name in CSV, and row numbers that it wrote to Parquet, or finds in CSV."""


def read_table(data: DataConfig) -> Source:
    """The rows of `data.path`, decoded once into the cache.

    Raises:
        RecipeError: the extra `datasets` is missing, or a column or split is not there; says which are.
        DataError: nothing of the name can be had, or its rows are unfit.
    """
    library = optional_package("datasets", "datasets", f"data.source = {data.source!r}")
    loaded = load_tables(library, data)
    train, test = loaded["train"], loaded.get("test")
    named = (data.name_column,) if data.name_column else ()
    inputs = data.input_columns or [c for c in train.column_names if c not in (data.label_column, *named)]
    if missing := [c for c in (*inputs, data.label_column, *named) if c not in train.column_names]:  # as in all splits
        keys = {data.label_column: "data.label_column", data.name_column: "data.name_column"}
        key = keys.get(missing[0], "data.input_columns")
        there = what_there_is(train.column_names, data.source)
        raise RecipeError(f"{key}: {data.path} has no column {missing[0]!r} in train; {there}")
    if not inputs:
        raise DataError(
            f"{data.path}: has no column but {data.label_column!r}, which holds the labels; add those of the inputs"
        )
    if not data.input_columns and (unnamed := [c for c in inputs if has_no_name(c)]):
        remedy = f"data.input_columns = {[c for c in inputs if c not in unnamed]}"
        raise RecipeError(
            f"data.input_columns: {data.path} has a column {unnamed[0]!r}, row numbers as pandas writes them or a "
            f"column without a name, which tell nothing of new rows; name the inputs: {remedy}"
        )
    values, names = label_values(train, data)
    reader = ImageReader(data.image_mode, data.image_size)

    def rows(table: Any, split: str, first_id: int) -> Rows:
        name = f"{(split == 'test' and data.test_path) or data.path}, {split}"
        columns = InputColumns(table.features, inputs, reader, name)
        columns.refuse_stray_text(table.data)

        def parts() -> Iterator[NDArray[np.generic]]:
            for start in range(0, len(table), READ_AT_ONCE):
                yield columns.read(table.data.slice(start, READ_AT_ONCE), start)

        files = [Path(f["filename"]) for f in table.cache_files]
        settings = {"split": split, "columns": inputs, "mode": data.image_mode, "size": data.image_size}
        y = label_codes(table, values, data.label_column, name)
        return rows_of(cached_rows(files, settings, parts), y, first_id)

    column = f"{data.path}: data.name_column {data.name_column!r}"
    naming = NameColumn(train.data.column(data.name_column), column) if named else None
    stored = rows(train, "train", 0)
    return Source(
        train=stored,
        test=None if test is None else rows(test, "test", len(stored)),
        class_names=tuple(names),
        input_columns=tuple(inputs),
        naming=naming,
    )


def has_no_name(column: str) -> bool:
    """Whether a column of a table is called as pandas calls those without a name."""
    return _NO_NAME.fullmatch(column) is not None


def what_there_is(columns: Sequence[str], source: str) -> str:
    """What to say of a table's columns where one is missing."""
    return (otherwise_divided(columns) if source == "csv" else "") or f"it has {listed(columns)}"


def otherwise_divided(columns: Sequence[str]) -> str:
    """What to say of CSV whose columns another mark than a comma divides; empty where none does."""
    mark = next((m for m in ";\t|" if m in columns[0]), "")
    return f"its first line divides columns by {mark!r}: write it with commas, and points in numbers" if mark else ""


def load_tables(library: Any, data: DataConfig) -> dict[str, Any]:
    """Tables by split, `train` and perhaps `test`, from the library's cache or put there; whole or not at all.

    Raises:
        RecipeError: a split or subset is not there; says which are.
        DataError: nothing of the name can be had, it cannot be read, or values stand under the names of others.
    """
    tables = _load_tables(library, data)
    for table in tables.values() if data.source == "csv" else ():
        named = [c for c in table.column_names if not c.startswith("__index_level_")]
        last = table.data.column(named[-1])
        if len(named) < len(table.column_names) and last.null_count == len(last):
            # pandas takes the first values of such lines for names of rows, as R writes them.
            raise DataError(
                f"{_names(data)}: lines end with a comma, and the first line does not, so that values stand under the "
                "names of others; take those commas away, or end the first line with one too"
            )
    return tables


def _load_tables(library: Any, data: DataConfig) -> dict[str, Any]:
    on_disk = {"keep_in_memory": False}  # whatever HF_DATASETS_IN_MEMORY_MAX_SIZE says: the cache goes by files
    try:
        if data.source == "hub":
            splits = {"train": data.train_split, **({"test": data.test_split} if data.test_split else {})}
            found = library.load_dataset(data.path, data.subset or None, revision=data.revision or None, **on_disk)
            if unknown := [s for s in splits.values() if s not in found]:
                key = "data.train_split" if data.train_split in unknown else "data.test_split"
                raise RecipeError(
                    f"{key}: {data.path} has no split {unknown[0]!r}; it has {listed(sorted(found))}; without a test "
                    "split say data.test_split = '' and set rows aside by data.test_rows"
                )
            return {name: found[split] for name, split in splits.items()}
        files = {"train": _files(data.path)} | ({"test": _files(data.test_path)} if data.test_path else {})
        # It takes names for patterns.
        patterns = {split: [glob.escape(f) for f in paths] for split, paths in files.items()}
        try:
            return dict(library.load_dataset(data.source, data_files=patterns, **on_disk))
        except library.exceptions.DatasetGenerationError as e:
            if data.source != "csv" or not any(words in str(e.__cause__) for words in _NUMBERS_DIFFER):
                raise
        features = _numbers_as_fractions(library, [f for paths in files.values() for f in paths], data)
        return dict(library.load_dataset(data.source, data_files=patterns, features=features, **on_disk))
    except SoftkinError:
        raise
    except Exception as e:  # the library and those under it have no common type
        if data.source == "hub" and (subsets := _SUBSETS.match(str(e))):
            raise RecipeError(
                f"data.subset is {data.subset!r}: {data.path} has the subsets {subsets[1]}; name one of them"
            ) from e
        raise DataError(_explain(library, e, data)) from e


def _numbers_as_fractions(library: Any, files: Sequence[str], data: DataConfig) -> Any:
    """What the columns of CSV files hold by their first rows, but whole numbers that are no labels taken for others."""
    import pyarrow as pa

    pandas = optional_package("pandas", "datasets", "data.source = 'csv'")
    first_rows = [pandas.read_csv(file, nrows=FIRST_ROWS) for file in files]
    schemas = [pa.Table.from_pandas(rows).schema for rows in first_rows if len(rows)]
    for schema in schemas[1:]:
        if set(schema.names) != set(schemas[0].names):  # told what there is to be, the library drops the rest
            raise DataError(_unlike(_names(data), schemas[0].names, schema.names))
    features = library.Features.from_arrow_schema(schemas[0])
    for name, feature in features.items():
        if feature.dtype == "int64" and name not in (data.label_column, data.name_column):
            features[name] = library.Value("float64")
    return features


def _names(data: DataConfig) -> str:
    return " and ".join(filter(None, (data.path, data.test_path)))


def _unlike(files: str, columns: Sequence[str], others: Sequence[str]) -> str:
    lacks, more = (sorted(set(a) - set(b))[:COLUMNS_SHOWN] for a, b in itertools.permutations((columns, others)))
    return (
        f"{files}: all tables must have the columns of the first, and one has {listed(more) or 'nothing'} more and "
        f"lacks {listed(lacks) or 'nothing'}; mend the file, nothing of it was kept"
    )


def _explain(library: Any, error: Exception, data: DataConfig) -> str:
    """What to do about an error of the library."""
    import pyarrow as pa
    from huggingface_hub.errors import HFValidationError

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(below)
    generating = isinstance(error, library.exceptions.DatasetGenerationError)
    cause = (error.__cause__ or error) if generating else error
    text = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or ['no reason given'])[0]}"
    files = _names(data)
    cache = str(library.config.HF_DATASETS_CACHE)
    if _cannot_be_written(cause, cache):
        return f"{files}: cannot be kept in {cache} ({text}); make room there, or set HF_HOME to a larger disk"
    if unlike := next((e for e in chain if isinstance(e, library.table.CastError)), None):
        return _unlike(files, unlike.requested_column_names, unlike.table_column_names)
    remedy = "mend the file"
    if any(isinstance(e, UnicodeError) for e in chain):
        remedy = "save it as UTF-8"
    if any(words in text for words in _NO_ROWS):
        remedy = "one of its files has no rows: add some, or take it away"
    if any(words in text for words in (*_NUMBERS_DIFFER, *_KINDS_DIFFER)):
        remedy = (
            "the first rows decide what a column holds, whole numbers, others or text: write it alike in all rows and "
            "tables, as 1.0 beside 1.5"
        )
    if generating or isinstance(error, pa.ArrowException) or data.source != "hub":
        how = "its files cannot be read" if data.source == "hub" else f"cannot be read as {data.source}"
        return f"{files}: {how} ({text}); {remedy}; nothing of it was kept"
    if os.path.isdir(data.path) or Path(data.path).is_absolute():
        return (
            f"{data.path}: is no folder in the layout of the hub ({text}); it holds data/train-*.parquet, for example, "
            "and data/test-*.parquet where there are test rows"
        )
    if data.path.count("/") > 1 or any(isinstance(e, HFValidationError) for e in chain):
        return f"{data.path}: is no folder here, nor a name that the hub allows ({text}); check data.path"
    if any(isinstance(e, library.exceptions.DatasetNotFoundError) for e in chain) and not _unreachable(
        chain, data.path
    ):
        return (
            f"{data.path}: the hub has no such data set, or it is private ({text}); check data.path, data.subset and "
            "data.revision, or log in with `hf auth login`"
        )
    return (
        f"{data.path}: cannot be had from the hub ({text}); check the connection and run again: files that came whole "
        "are kept, the others are fetched again. Without a connection, give a downloaded copy's folder as data.path"
    )


def _cannot_be_written(error: BaseException, cache: str) -> bool:
    """Whether it is the disk that fails, and not what is read from it."""
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
    refused = error.errno in (errno.EACCES, errno.ENOTDIR) and str(error.filename).startswith(cache)
    return full or refused


def _unreachable(chain: Sequence[BaseException], name: str) -> bool:
    words = ("connect", "offline", "reach", "timeout", "resolve", "name or service")
    # Addresses and the data set's name may hold any of them: the hub's files lie under .../resolve/REVISION.
    texts = [re.sub(r"https?://\S+", "", f"{type(e).__name__} {e}").replace(name, "").lower() for e in chain]
    return any(word in text for text in texts for word in words)


def _files(pattern: str) -> list[str]:
    # What is called like a pattern itself is not to be mistaken for it, as a[1].csv beside a1.csv.
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True)) or [pattern]
    if missing := [f for f in found if not os.path.isfile(f)]:
        raise DataError(f"{missing[0]}: no such file; data.path and data.test_path name a file, or files by a pattern")
    return [str(Path(f).absolute()) for f in found]


def label_values(table: Any, data: DataConfig) -> tuple[list[Any], list[str]]:
    """Values of the label column in the order of their labels, and what they are called.

    Raises:
        DataError: they are of a kind that no labels have, or one is empty.
    """
    feature = table.features[data.label_column]
    if names := getattr(feature, "names", None):
        return list(range(len(names))), list(names)
    column = table.data.column(data.label_column)
    kind = str(column.type)
    if column.null_count and kind == "double":  # whole numbers, which a gap makes the library read as others
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(
            f"{data.path}: the label column {data.label_column!r} has no value in row {row}; fill it in, or drop the "
            "row"
        )
    if not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise DataError(
            f"{data.path}: the label column {data.label_column!r} is {kind}; it must hold whole numbers or text"
        )
    values = sorted(v for v in column.unique().to_pylist() if v is not None)
    names = [str(v) for v in values]
    for name in names:
        if not name.strip() or (name != name.strip() and name.strip() in names):
            raise DataError(
                f"{data.path}: the label column {data.label_column!r} has the label {name!r}, which is "
                f"{'empty' if not name.strip() else f'{name.strip()!r} but for spaces'}; mend it, or drop those rows"
            )
    return values, names


def label_codes(table: Any, values: list[Any], label_column: str, name: str) -> NDArray[np.int64]:
    """`[n]` indices of `values` that the rows' labels are; `name` is what an error calls the table.

    Raises:
        DataError: a row has no label, or one that is no value.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.data.column(label_column)
    if pa.types.is_string_view(column.type):  # in which Arrow looks nothing up
        column = column.cast(pa.large_string())
    found = pc.index_in(column, value_set=pa.array(values, column.type))
    missing = np.flatnonzero(found.is_null().to_numpy())
    if len(missing):
        value = column[int(missing[0])].as_py()
        allowed = f"{len(values)} labels of train: {listed(values[:10])}{' ...' if len(values) > 10 else ''}"
        none = (
            ""
            if value is not None
            else "; drop the row, or rename a class that CSV takes for no value, such as NA or None"
        )
        raise DataError(f"{name}: row {missing[0]} has the label {value!r}, which is none of the {allowed}{none}")
    return found.to_numpy().astype(np.int64)
