"""What of the environment keeps the hub from being reached is named, in processes that have it so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A proxy at a port of the loopback where nothing listens, and what is no address.
CASES = [
    ({"HTTPS_PROXY": "http://me:secret@127.0.0.1:1"}, "HTTPS_PROXY is '127.0.0.1:1': give it as http://HOST:PORT"),
    ({"HTTPS_PROXY": "ht!tp://x"}, "HTTPS_PROXY is 'ht!tp://x': give it as http://HOST:PORT, or unset it"),
    ({"HF_ENDPOINT": "nonsense"}, "HF_ENDPOINT is 'nonsense': give it as https://HOST, or unset it"),
    (
        {"HF_HOME": "a_file", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "Not a directory; HF_HOME, or HF_HUB_CACHE, must name a folder that can be written",
    ),
    ({"HF_HUB_OFFLINE": "1"}, "it is not in the cache, and HF_HUB_OFFLINE is set; fetch it once without that"),
]


@pytest.mark.parametrize(("environment", "message"), CASES)
def test_what_keeps_the_hub_from_being_reached_is_named(
    environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a_file").touch()
    program = (
        "from artkv.errors import UserError\n"
        "from artkv.models.files.hub import local_folder\n"
        "try:\n"
        "    local_folder('user/painter', 'model.blip2', 'v1')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    # The proxy of whoever runs the tests would be told.
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env=kept | {"HF_HOME": str(tmp_path / "hub")} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "model.blip2 = 'user/painter' at model.revision = 'v1': no such folder, and not to be"
    )
    assert message in done.stdout
    assert done.stdout.count("\n") == 1
    assert "secret" not in done.stdout
