"""artkv's tests. What has to be so before any other module is imported stands here."""

import os

import torch

# Where there is no card to compile Triton's kernels for, they are interpreted. Triton asks for it as it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
