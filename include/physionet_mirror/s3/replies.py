"""What S3's refusals, and those of whoever hands out its credentials, mean for the person who must act.

S3's own sentence is passed on in every refusal, as it names the right that is missing; `redacted` takes out of it what
must not be in a log. Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
from botocore import exceptions

from physionet_mirror.errors import (
    BucketMissing,
    BucketRefused,
    DestinationError,
    DestinationUnavailable,
    InputError,
    MirrorError,
    ObjectArchived,
    ObjectLocked,
)
from physionet_mirror.worker_settings import proxy_refusal, settings_at_fault

BUSY = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "InternalFailure",
    "RequestTimeout",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "429",
    "KMS.ThrottlingException",
}
"""Codes that pass by themselves, whatever the status; so do all other answers of 5xx but NotImplemented."""

ABSENT = {"NoSuchKey", "NotFound", "404", "NoSuchVersion"}

CONDITION = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409"}
"""Codes of a write whose If-Match or If-None-Match does not hold."""

_STAYS = "What is stored stays stored."
_THEN = "Then trigger the run again: it goes on where it stopped."
_POLICY = "The policy that a role needs is in docs/deploy.md."
_RESTORE = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects.html"
_LOCK = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html"

_EXPIRED = (
    "The temporary credentials have expired. Renew keys and `aws_session_token` in the AWS connection (or log in again with "
    "`aws sso login`); a role's credentials renew themselves."
)
_UNKNOWN_KEY = (
    "This endpoint does not know the access key. Check the login of the AWS connection and its `endpoint_url`: each S3 knows "
    "its own keys only; the key may also be deleted or switched off."
)
_MISMATCH = (
    "The secret key does not belong to the access key. Check the password of the AWS connection: a blank or a newline that was "
    "pasted with it, or, in a connection URI, a character that is not percent-encoded."
)
_FOREIGN_SESSION = (
    "The session token does not belong to the access key. Check `aws_session_token` in the AWS connection's extra; permanent "
    "keys have none."
)
_CLOSED = "AWS has closed the account or the bucket to all requests: the bucket's owner must ask AWS Support."
_WANTS_OTHERWISE = (
    "This S3 does not take the request in this form; repeating it cannot help. Check `storage_class`, and in the AWS "
    "connection `kms_key_id` and `server_side_encryption`, against what it offers."
)
_REFUSALS: Mapping[str, str] = {
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _MISMATCH,
    "InvalidToken": _FOREIGN_SESSION,
    "InvalidSecurity": _MISMATCH,
    "AllAccessDisabled": _CLOSED,
    "AccountProblem": _CLOSED,
    "NotSignedUp": _CLOSED,
    "InvalidIdentityToken": "The web identity token is not valid for this role. Check the role's trust policy.",
    "NotImplemented": _WANTS_OTHERWISE,
    "MethodNotAllowed": _WANTS_OTHERWISE,
    "InvalidArgument": _WANTS_OTHERWISE,
    "InvalidRequest": _WANTS_OTHERWISE,
    "InvalidStorageClass": _WANTS_OTHERWISE,
    "InvalidEncryptionAlgorithmError": _WANTS_OTHERWISE,
    "UnsupportedArgument": _WANTS_OTHERWISE,
    "UnsupportedSignature": _WANTS_OTHERWISE,
}
"""What a code of S3 or STS says, and what to do. All of them stay until a person acts."""

CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
DENIED = {"AccessDenied", "AccessDeniedException", "Forbidden", "Unauthorized", "401", "403"}
REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "307",
    "308",
}
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")

_SERVICES = {
    "AssumeRole": "AWS STS, asked for the role of the AWS connection (`role_arn`)",
    "AssumeRoleWithWebIdentity": "AWS STS, asked for the role of a web identity (`role_arn`, AWS_ROLE_ARN)",
    "AssumeRoleWithSAML": "AWS STS, asked for the role of a SAML login (`role_arn`)",
    "GetRoleCredentials": "AWS IAM Identity Center (SSO), asked for a role's credentials",
}
"""Who else answers, while credentials are made."""

# -- without secrets -------------------------------------------------------------------------------------------------

_SECRETS = (
    (re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA|AIDA|AROA|AGPA|ANPA)[A-Z0-9]{8,}\b"), "…"),  # keys and ids of IAM
    (
        re.compile(
            r"(?i)((?:signature|token|credential|secret\w*|password|accesskey\w*)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;]{6,}"
        ),
        r"\1…",
    ),
    (re.compile(r"\b(Basic|Bearer|AWS4-HMAC-SHA256)\s+\S+"), r"\1 …"),
    (re.compile(r"://[^/\s@]+@"), "://…@"),
    (re.compile(r"(?<![0-9A-Za-z-])\d{8}(\d{4})(?![0-9A-Za-z-])"), r"…\1"),  # an account: the end tells two apart
    (re.compile(r"[A-Za-z0-9+=]{32,}"), "…"),  # whatever else is keyed or signed
)
_LONGEST = 600  # characters of a foreign sentence


def redacted(text: str) -> str:
    """A sentence of S3's, STS's or of a credential process, in one line, without keys, tokens, signatures and accounts.

    Of an account id the last four digits stay: they tell whether two that are named are the same.
    """
    text = " ".join(text.split())[: 4 * _LONGEST]
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return text[:_LONGEST]


# -- what an exception means -----------------------------------------------------------------------------------------


def code_of(error: exceptions.ClientError) -> str:
    """S3's code, or the HTTP status where it gave none (an answer to HEAD has no body)."""
    return str(error.response.get("Error", {}).get("Code", "")) or status_of(error)


def code_in(text: str) -> str:
    """The code that an error of `meaning`'s quotes, empty where it quotes none."""
    found = re.search(r"\((\w+), asking for", text)
    return found[1] if found else ""


def status_of(error: exceptions.ClientError) -> str:
    """The HTTP status, empty where there is none."""
    return str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def meaning(error: Exception, where: str, what: str, bucket: str, region: str | None = None) -> Exception:
    """The error of ours that one of botocore's comes to; without its text, which may quote signed headers.

    Args:
        error: ClientError, BotoCoreError, or what is raised while credentials are made.
        where: Whom the request went to, ``s3://bucket``.
        what: What was asked for; ``the bucket`` itself, or the path of an object.
        bucket: The bucket's name.
        region: The region that the connection says.

    Returns:
        A `MirrorError`, or FileNotFoundError where S3 has no such object.
    """
    if isinstance(error, exceptions.ClientError):
        return _answered(error, where, what, bucket, region)
    return _unasked(error, where, region)


def _answered(error: exceptions.ClientError, where: str, what: str, bucket: str, region: str | None) -> Exception:
    code, status, operation = code_of(error), status_of(error), error.operation_name
    said = redacted(str(error.response.get("Error", {}).get("Message", "")))
    if said in {"", "Forbidden", "Bad Request", "Not Found"}:  # HTTP's words, of an answer without a body
        said = ""
    quoted = f' S3 says: "{said}"' if said else ""
    if status == "407" or code == "407":
        return proxy_refusal(407, where)
    if service := _SERVICES.get(operation):
        if code in BUSY or status.startswith("5"):
            return DestinationUnavailable(
                f"{service}, could not answer ({code}). {_STAYS} The task is retried by itself."
            )
        explained = _REFUSALS.get(code, "Check the role's name and its trust policy.")
        sentence = f' It says: "{said}"' if said else ""
        return BucketRefused(f"{service}, refuses ({code}). Nothing was asked of S3.{sentence} {explained} {_THEN}")
    if code == "NoSuchBucket" or (status == "404" and what == "the bucket"):
        return BucketMissing(
            f"The bucket {bucket} does not exist at this S3 endpoint. Nothing was written. Check the param `bucket` for a "
            "typing error and the AWS connection for its region and endpoint, or create the bucket."
        )
    if code in ABSENT or status == "404":
        return FileNotFoundError(f"{where}/{what} does not exist.")
    asking = f"{code}, asking for {what}"
    if code == "InvalidObjectState":
        return archived(f"{where}/{what}")
    if code in CLOCK:
        return BucketRefused(
            f"S3 refuses {where} because this worker's clock is wrong{_skew(error)} ({asking}). {_STAYS} Have the worker set its "
            f"clock by NTP (chrony, systemd-timesyncd). {_THEN}"
        )
    if code in REGION:
        return BucketRefused(_other_region(error, where, asking, said, region))
    if code in _REFUSALS or code.startswith("KMS"):
        explained = _REFUSALS.get(
            code,
            "The KMS key cannot be used. Check `kms_key_id` in the AWS connection's extra, or the bucket's default encryption, "
            "and the key itself.",
        )
        return BucketRefused(f"S3 refuses {where} ({asking}). {_STAYS}{quoted} {explained} {_THEN}")
    if code in BUSY or (status.startswith("5") and status != "501"):
        return DestinationUnavailable(
            f"S3 could not serve {where} ({asking}), also after retries. {_STAYS} The task is retried by itself; if it goes on, "
            "check the endpoint and the network."
        )
    if code in DENIED or status in {"401", "403", "501"}:
        hint = (
            "That policy may want an encryption header (`server_side_encryption` or `kms_key_id` in the AWS connection's extra), "
            "TLS, or another network. "
            if "explicit deny in a resource-based policy" in said
            else ""
        )
        named = (
            "Have allowed what it names. " if "not authorized to perform" in said else f"It names no right. {_POLICY} "
        )
        return BucketRefused(f"S3 refuses {where} ({asking}). {_STAYS}{quoted} {hint}{named}{_THEN}")
    return DestinationError(
        f"S3 answered {code} for {where} (asking for {what}). {_STAYS}{quoted} See the meaning of the code at "
        "https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html"
    )


def archived(uri: str) -> ObjectArchived:
    """The error of an object that was archived by a lifecycle rule, a storage class or a tier."""
    return ObjectArchived(
        f"{uri} is archived (GLACIER, DEEP_ARCHIVE or an archive tier), so S3 cannot give its bytes; no right is missing and "
        f"nothing is lost. Restore it first, or leave out what reads it (verify=checksum reads nothing): {_RESTORE} A lifecycle "
        "rule that archives must leave out `_mirror/`, which every run reads."
    )


def not_deleted(
    errors: Sequence[Mapping[str, Any]], asked: int, where: str, *, is_locked: bool = False
) -> DestinationError:
    """The error of a DeleteObjects answer that names what was not deleted.

    Args:
        errors: Its ``Errors``, not empty.
        asked: Objects that were to go.
        where: ``s3://bucket``.
        is_locked: Whether the first of them is known to be under an Object Lock, whatever S3 says.
    """
    first = errors[0]
    code, said = str(first.get("Code", "")), redacted(str(first.get("Message") or ""))
    begun = (
        f"S3 did not delete {len(errors)} of {asked} objects in {where}, the first one {first.get('Key')} ({code}). The others "
        "are deleted."
    )
    quoted = f' S3 says: "{said}"' if said else ""
    words = said.lower()
    if is_locked or "object lock" in words or "legal hold" in words or code in {"ObjectLocked", "InvalidRetention"}:
        return ObjectLocked(
            f"{begun}{quoted} An Object Lock (retention or legal hold) keeps them; no right is missing. Wait until the "
            f"retention ends, or have the lock taken off, then clean up again: {_LOCK}"
        )
    kind = BucketRefused if code in DENIED else DestinationError
    return kind(f"{begun}{quoted} Have allowed what it names, and try again. {_POLICY}")


def _skew(error: exceptions.ClientError) -> str:
    try:
        date = parsedate_to_datetime(error.response["ResponseMetadata"]["HTTPHeaders"]["date"])
        minutes = (datetime.now(UTC) - date).total_seconds() / 60
    except (KeyError, TypeError, ValueError):
        return ""
    return f": {abs(minutes):,.0f} minutes {'ahead of' if minutes > 0 else 'behind'} S3's" if abs(minutes) >= 1 else ""


def _other_region(error: exceptions.ClientError, where: str, asking: str, said: str, region: str | None) -> str:
    told: Mapping[str, Any] = error.response.get("Error", {})
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = _EXPECTED_REGION.search(said)
    right = told.get("Region") or headers.get("x-amz-bucket-region") or (found and found[1])
    now = f" (now {region})" if region else ""
    if right:
        return (
            f"{where} is in the region {right}, and was asked for in another one ({asking}). {_STAYS} Set `region_name` to "
            f"{right} in the AWS connection's extra{now}. {_THEN}"
        )
    quoted = f' S3 says: "{said}"' if said else ""
    return (
        f"{where} is to be asked elsewhere ({asking}). {_STAYS}{quoted} Set `region_name` in the AWS connection's extra{now} to "
        f"the bucket's region, and leave `endpoint_url` away for Amazon's S3. {_THEN}"
    )


_PASSING = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    exceptions.ChecksumError,
    exceptions.FlexibleChecksumError,
    exceptions.MetadataRetrievalError,
)
"""What botocore raises where the network or the other end failed. All else of its errors comes from settings."""

_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.SSOError,
    exceptions.LoginError,
    exceptions.RefreshWithMFAUnsupportedError,
)


def _unasked(error: Exception, where: str, region: str | None) -> MirrorError:
    """There was no answer: the network, or a setting that keeps the request from being made."""
    kind = type(error).__name__
    if fault := settings_at_fault(error, where):
        return fault
    if isinstance(error, exceptions.CredentialRetrievalError) and error.kwargs.get("provider") == "container-role":
        return _away(where, kind)
    if isinstance(error, exceptions.EndpointConnectionError) and region and not _is_known(region):
        return InputError(
            f"{where} could not be reached in the region {redacted(region)!r}, which is none that this worker knows. Nothing was "
            "written. Correct `region_name` in the AWS connection's extra (or AWS_DEFAULT_REGION): "
            "https://docs.aws.amazon.com/general/latest/gr/s3.html"
        )
    if isinstance(error, _PASSING) or (isinstance(error, OSError) and not isinstance(error, _FILES)):
        return _away(where, kind)
    if isinstance(error, _CREDENTIALS):
        return BucketRefused(
            f"There are no valid AWS credentials for {where}: {redacted(str(error))} {_STAYS} Renew them or correct the AWS "
            "connection: access keys, `profile_name` with its `credential_process` or `aws sso login` as the worker's user, or "
            f"the worker's role. {_THEN}"
        )
    return InputError(
        f"A setting for S3 cannot be used: {redacted(str(error))} ({kind}). Nothing was asked of {where}. Correct the AWS "
        "connection (`endpoint_url`, `region_name`, `profile_name`, `role_arn`, `config_kwargs`, `verify` …), or the worker's "
        "AWS_ variables and ~/.aws/config: "
        "https://airflow.apache.org/docs/apache-airflow-providers-amazon/stable/connections/aws.html"
    )


_FILES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def _is_known(region: str) -> bool:
    try:
        session = boto3.Session(region_name=region)
        return any(region in session.get_available_regions("s3", p) for p in session.get_available_partitions())
    except exceptions.BotoCoreError:  # a setting that this is not about
        return True


def _away(where: str, kind: str) -> DestinationUnavailable:
    return DestinationUnavailable(
        f"S3 could not serve {where} ({kind}), also after retries. {_STAYS} The task is retried by itself; if it goes on, check "
        "the endpoint, the proxy and the network."
    )
