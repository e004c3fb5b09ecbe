"""What the errors of huggingface_hub mean to a user, and what of the environment leads to them."""

import os
import re
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from artkv.models.files.foreign_files import reason_of
from artkv.reading import printable

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
# Where libraries look for the authorities whose certificates are trusted; httpx for the first two, requests the others.
_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

# What OpenSSL says where something else than TLS is answered.
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER|PACKET_LENGTH_TOO_LONG|HTTP_REQUEST|UNEXPECTED_EOF")


def why_not_from_hub(error: BaseException, revision: str | None, sends: bool = False) -> str:
    """Why the hub gave nothing, and the remedy.

    revision: the commit, tag or branch that was asked for. sends: whether something was to be sent there, for which no
    cache stands in.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return "it is no id of the hub, which are such as Salesforce/blip2-opt-2.7b; correct it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it; give a commit, tag or branch that it has"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access to it one by one; ask on its page, and {_log_in()}"
    if status == 401 and (name := _wrong_token()) is not None:
        return _of_wrong_token(name)
    if status == 401 and sends and (refused := _refused_token()) is not None:
        return refused
    if status == 403:
        return "the token may not do that (403); give one that may, with HF_TOKEN"
    # Before what is told by its status: it is a 404 too.
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub has the model, but not this file of it; ask its author for that, or give another model's id"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return f"the hub knows no such model, or it is private ({status}); check the name, and {_log_in()}"
    if status is not None:
        return f"the hub answers {status}; try again, or look at its status page"
    return _without_an_answer(error, sends)


def _without_an_answer(error: BaseException, sends: bool) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        if sends:
            return "HF_HUB_OFFLINE is set, and what is sent there needs the hub; unset it, and try again"
        return "it is not in the cache, and HF_HUB_OFFLINE is set; fetch it once without that, with a network"
    # What keeps the hub from being reached is told by a chain of errors, of which the last says least.
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, OSError) and one.filename is not None:
            return (
                f"{printable(one.filename)}: {one.strerror}; HF_HOME, or HF_HUB_CACHE, must name a folder "
                "that can be written"
            )
    if (name := _wrong_token()) is not None:
        return _of_wrong_token(name)
    said = _without_tokens(f"{type(chain[-1]).__name__}: {reason_of(chain[-1])}")
    return f"the hub is not reached ({said}); {_remedy(chain, sends)}"


def _remedy(chain: Sequence[BaseException], sends: bool) -> str:
    """What of the environment to look at: what is no address first, then what the errors are about."""
    addresses = {name: os.environ[name] for name in ("HF_ENDPOINT", *_PROXIES) if name in os.environ}
    wrong = [name for name, value in addresses.items() if not _is_address(value, name)]
    if not wrong and (about_authorities := _of_authorities(chain)) is not None:
        return about_authorities
    if not wrong and any(isinstance(one, ssl.SSLError) or _NO_TLS.search(str(one)) for one in chain):
        for name, value in addresses.items():
            if value.startswith("https:"):
                form = "http://HOST" if name == "HF_ENDPOINT" else "http://HOST:PORT"
                told = "what answers there does not speak TLS as it should; if it speaks none"
                return f"{name} is {_shown(value)}, and {told}, give it as {form}; else correct it, or unset it"
    for name in (*wrong, *(name for name, value in addresses.items() if value)):
        form = "https://HOST" if name == "HF_ENDPOINT" else "http://HOST:PORT"
        return f"{name} is {_shown(addresses[name])}: give it as {form}, or unset it"
    return "look at the network" + (", and try again" if sends else ", or set HF_HUB_OFFLINE=1 to use the cache")


def _is_address(text: str, name: str) -> bool:
    if not text and name != "HF_ENDPOINT":  # no proxy then, while an empty endpoint is one
        return True
    schemes = ("http", "https") if name == "HF_ENDPOINT" else ("http", "https", "socks5", "socks5h")
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port of six digits
        return False


def _of_authorities(chain: Sequence[BaseException]) -> str | None:
    """Where certificates are what the errors are about: the variable that names those to trust; else None."""
    is_distrust = any(
        isinstance(one, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(one) for one in chain
    )
    is_bundle = any("CA certificate bundle" in str(one) for one in chain)
    # What httpx cannot load keeps it from any address; the others are requests', which says what it misses.
    names = [name for name in _AUTHORITIES if os.environ.get(name)]
    found = [name for name in names if (name.startswith("SSL_") or is_bundle) and not _are_authorities(name)]
    for name in [*found, *(names if is_distrust else [])]:
        kind = "a folder of certificates" if name == "SSL_CERT_DIR" else "a file of certificates in PEM"
        return f"{name} is {printable(os.environ[name])[:200]!r}: give it {kind} that may be read, or unset it"
    if is_distrust:
        return "its certificate is not trusted here; give SSL_CERT_FILE the file of whom your network trusts"
    return None


def _are_authorities(name: str) -> bool:
    path = os.environ[name]
    if name != "SSL_CERT_FILE" and os.path.isdir(path):
        return True
    try:
        ssl.create_default_context(cafile=path)
    except OSError:  # that it is no PEM is one too
        return False
    return name != "SSL_CERT_DIR"


def _log_in() -> str:
    """What to do about a token, by whether there is one in the environment."""
    found = next((name for name in _TOKENS if os.environ.get(name)), None)
    return _LOG_IN if found is None else f"see that the token in {found} is valid and may read it, or unset it"


def _wrong_token() -> str | None:
    """The variable whose token cannot be sent, as where it was copied with a blank inside, or from a text in bold."""
    return next((name for name in _TOKENS if re.search(r"[^!-~]", os.environ.get(name, "").strip())), None)


def _of_wrong_token(name: str) -> str:
    return f"{name} holds a blank or a character that no token has; copy the token anew, or unset it"


def _refused_token() -> str | None:
    """What to do where a token was sent and the hub asks for one; None where there is none."""
    from huggingface_hub import constants, get_token

    if not get_token():
        return None
    if (name := next((name for name in _TOKENS if os.environ.get(name)), None)) is not None:
        page = f"{constants.ENDPOINT}/settings/tokens"
        return f"the hub does not accept the token in {name} (401); copy one anew from {page}, with the right to write"
    return "the hub does not accept the token of `hf auth login` (401); log in anew, or set HF_TOKEN"


def _without_tokens(text: str) -> str:
    """A library may repeat a header that it cannot send."""
    text = re.sub(r"Bearer \S+", "Bearer ...", text)
    for name in _TOKENS:
        if token := os.environ.get(name, "").strip():
            text = text.replace(token, f"<{name}>")
    return text


def _shown(address: str) -> str:
    """An address without the password that may stand before its @."""
    return repr(address.rpartition("@")[2])[:200]
