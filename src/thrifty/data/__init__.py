"""Data: models and sets that can be fetched, tasks with checked answers, and readers of users' files."""

from thrifty.data.assets import Asset, assets
from thrifty.data.fetch import cached, fetch, verify
from thrifty.data.images import ImageSet, images
from thrifty.data.letters import LetterSet, letters
from thrifty.data.readers import (
    LabelledImages,
    Records,
    read,
    read_images,
    read_minari,
    require_columns,
    write_jsonl,
)
from thrifty.data.tables import Table, table, table_names
from thrifty.data.tasks import Arithmetic, Problem, ReasoningGym, Task, arithmetic, parse_integer, reasoning, task
from thrifty.data.text import TextSet, texts

__all__ = [
    "Arithmetic",
    "Asset",
    "ImageSet",
    "LabelledImages",
    "LetterSet",
    "Problem",
    "ReasoningGym",
    "Records",
    "Table",
    "Task",
    "TextSet",
    "arithmetic",
    "assets",
    "cached",
    "fetch",
    "images",
    "letters",
    "parse_integer",
    "read",
    "read_images",
    "read_minari",
    "reasoning",
    "require_columns",
    "table",
    "table_names",
    "task",
    "texts",
    "verify",
    "write_jsonl",
]
