"""What of the environment keeps the hub from being reached is named, in processes that have it so."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from artkv.models.files.hub_failures import why_not_from_hub

# A proxy at a port of the loopback where nothing listens, and what is no address.
CASES = [
    ({"HTTPS_PROXY": "http://me:secret@127.0.0.1:1"}, "HTTPS_PROXY is '127.0.0.1:1': give it as http://HOST:PORT"),
    ({"HTTPS_PROXY": "ht!tp://x"}, "HTTPS_PROXY is 'ht!tp://x': give it as http://HOST:PORT, or unset it"),
    ({"HF_ENDPOINT": "nonsense"}, "HF_ENDPOINT is 'nonsense': give it as https://HOST, or unset it"),
    (
        {"HF_HOME": "a_file", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "Not a directory; HF_HOME, or HF_HUB_CACHE, must name a folder that can be written",
    ),
    ({"HF_ENDPOINT": "ftp://x"}, "HF_ENDPOINT is 'ftp://x': give it as https://HOST, or unset it"),
    ({"HF_ENDPOINT": "http://"}, "HF_ENDPOINT is 'http://': give it as https://HOST, or unset it"),
    ({"HF_ENDPOINT": ""}, "HF_ENDPOINT is '': give it as https://HOST, or unset it"),
    # The one that is no address, and not the other.
    (
        {"HF_ENDPOINT": "https://127.0.0.1:1", "HTTPS_PROXY": "socks9://me:secret@x"},
        "HTTPS_PROXY is 'x': give it as http://HOST:PORT, or unset it",
    ),
    (
        {"HF_TOKEN": "hf_s\u00f6cret", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "HF_TOKEN holds a blank or a character that no token has; copy the token anew, or unset it",
    ),
    ({"HF_TOKEN": "hf_secret\x01", "HF_ENDPOINT": "http://127.0.0.1:1"}, "HF_TOKEN holds a blank or a character that"),
    (
        {"SSL_CERT_FILE": ".", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "SSL_CERT_FILE is '.': give it a file of certificates in PEM that may be read, or unset it",
    ),
    (
        {"SSL_CERT_FILE": "/none/x.pem", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "SSL_CERT_FILE is '/none/x.pem': give it a file of certificates in PEM that may be read, or unset it",
    ),
    (
        {"SSL_CERT_FILE": "a_file", "HF_ENDPOINT": "https://127.0.0.1:1"},
        "SSL_CERT_FILE is 'a_file': give it a file of certificates",
    ),
    ({"HF_HUB_OFFLINE": "1"}, "it is not in the cache, and HF_HUB_OFFLINE is set; fetch it once without that"),
]


def _of_the_machine() -> list[str]:
    """What of the environment of whoever runs the tests would be told."""
    parts = ("PROXY", "HF_ENDPOINT", "SSL_CERT", "CA_BUNDLE")
    return [name for name in os.environ if any(part in name.upper() for part in parts)]


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
    kept = {name: value for name, value in os.environ.items() if name not in _of_the_machine()}
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
    assert "cret" not in done.stdout.replace("secret", "")


@pytest.mark.parametrize(
    ("error", "sends", "message"),
    [
        (ConnectionError("Illegal header value b'Bearer hf_secret'"), False, "(ConnectionError: Illegal header value"),
        (ConnectionError("hf_secret"), False, "(ConnectionError: <HF_TOKEN>)"),
        (ConnectionError("no route"), False, "look at the network, or set HF_HUB_OFFLINE=1 to use the cache"),
        (ConnectionError("no route"), True, "look at the network, and try again"),
        (OfflineModeIsEnabled(""), True, "HF_HUB_OFFLINE is set, and what is sent there needs the hub; unset it"),
        (ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED"), False, "give SSL_CERT_FILE the file of whom"),
        (HFValidationError("Repo id must ..."), False, "it is no id of the hub, which are such as Salesforce/"),
    ],
)
def test_what_failed_is_told_and_the_token_is_not(
    error: Exception, sends: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _of_the_machine():
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = why_not_from_hub(error, None, sends)
    assert message in told
    assert "secret" not in told


class _Answer(Exception):
    """What huggingface_hub raises, with the hub's answer."""

    def __init__(self, status: int) -> None:
        super().__init__("Invalid username or password.")
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_other", "the hub does not accept the token in HF_TOKEN (401); copy one anew from https://"),
        ("hf_ot her", "HF_TOKEN holds a blank or a character that no token has; copy the token anew"),
    ],
)
def test_a_token_that_the_hub_refuses_is_what_keeps_a_model_from_being_sent(
    token: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    told = why_not_from_hub(_Answer(401), None, sends=True)
    assert told.startswith(message)
    assert "other" not in told


def test_without_a_token_a_model_that_is_hidden_may_be_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "or it is private (401); check the name, and log in" in why_not_from_hub(_Answer(401), None, sends=True)


@pytest.mark.parametrize(
    "said", ["[SSL: WRONG_VERSION_NUMBER] wrong version number", "[SSL: RECORD_LAYER_FAILURE]", "[SSL] UNEXPECTED_EOF"]
)
@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HTTPS_PROXY"])
def test_a_server_without_tls_is_no_matter_of_certificates(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in _of_the_machine():
        monkeypatch.delenv(other)
    monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().cafile or "")
    monkeypatch.setenv(name, "https://me:secret@10.0.0.1:80")
    told = why_not_from_hub(ssl.SSLError(1, said), None)
    assert f"{name} is '10.0.0.1:80', and what answers there does not speak TLS as it should; if it speaks none" in told
    assert "SSL_CERT_FILE" not in told
    assert "secret" not in told
