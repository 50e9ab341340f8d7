"""
The S3 credentials that stand in files, as the AWS tools keep them.

obstore reads AWS_ACCESS_KEY_ID and the other variables by itself, and knows the services that give credentials to
machines and containers; it does not read the files that `aws configure` writes.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import TYPE_CHECKING

from blockferry import errors

if TYPE_CHECKING:
    from obstore.store import S3Config


def of_environment() -> S3Config:
    """
    Return what the files say of AWS_PROFILE (else "default"); nothing when AWS_ACCESS_KEY_ID is set, which comes first.

    Raises ConfigError when AWS_PROFILE names one that is in no file, or a file cannot be read.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    name = os.environ.get("AWS_PROFILE", "default")
    secrets = _section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name)
    settings = _section("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}")
    if not secrets and not settings and "AWS_PROFILE" in os.environ:
        raise errors.ConfigError(
            f"There is no profile {name} (AWS_PROFILE) in ~/.aws/credentials or ~/.aws/config.",
            "Write it with `aws configure --profile`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    found = settings | secrets
    config: S3Config = {}
    if "aws_access_key_id" in found:
        config["access_key_id"] = found["aws_access_key_id"]
        config["secret_access_key"] = found.get("aws_secret_access_key", "")
    if "aws_session_token" in found:
        config["session_token"] = found["aws_session_token"]
    if "region" in found and not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        config["region"] = found["region"]
    if "endpoint_url" in found and not os.environ.get("AWS_ENDPOINT_URL"):
        config["endpoint"] = found["endpoint_url"]
    return config


def _section(variable: str, default: str, section: str) -> dict[str, str]:
    """Return a section of the file that a variable names, empty when there is none. Raises ConfigError."""
    path = Path(os.environ.get(variable) or default).expanduser()
    # A secret may contain "%", and has no default section to come from.
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The file {path} ({variable}) cannot be read: {error}.") from None
    except configparser.Error:
        # The parser's own text shows the line, which may be a secret.
        raise errors.ConfigError(f"The file {path} ({variable}) is not written as the AWS tools write it.") from None
    return dict(parser[section]) if parser.has_section(section) else {}
