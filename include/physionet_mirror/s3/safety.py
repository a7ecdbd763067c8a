"""Is this bucket a place for restricted data? It must exist, take our objects, encrypt them, and be closed to the public.

Two things open a bucket to the world, and each has its own lock:

    opened by                                          closed by (of the bucket or of the whole account)
    a bucket policy that S3 calls public               RestrictPublicBuckets
    an ACL that grants to AllUsers or                  IgnorePublicAcls, or ACLs switched off
    AuthenticatedUsers (anyone with an AWS account)    (Object Ownership: BucketOwnerEnforced)

Objects have ACLs too, which nobody can look through one by one: with ACLs switched on and nothing that ignores public
ones, a bucket counts as open. BlockPublicPolicy and BlockPublicAcls only keep *new* doors from being opened, so they do
not decide here. Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from physionet_mirror.errors import BucketUnsafe, DestinationError, DestinationUnavailable
from physionet_mirror.layout import MIRROR
from physionet_mirror.s3 import replies
from physionet_mirror.s3.bucket import Bucket

if TYPE_CHECKING:
    import boto3

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE = MIRROR + "access-check"
"""The object that is written and removed to see whether we may write."""

_PUBLIC_GROUPS = {
    "http://acs.amazonaws.com/groups/global/AllUsers": "everyone",
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers": "everyone with an AWS account",
}
_NONE = {  # "there is no such setting", which is an answer
    "NoSuchPublicAccessBlockConfiguration",
    "NoSuchBucketPolicy",
    "OwnershipControlsNotFoundError",
    "ServerSideEncryptionConfigurationNotFoundError",
}

Block = Mapping[str, bool]
"""The settings of a public access block that are on: ``{"RestrictPublicBuckets": True, …}``; empty where there is none."""


@dataclass(frozen=True)
class Safety:
    """What the check found in a bucket that may be used.

    Attributes:
        encryption: How S3 encrypts what we write (``AES256``, ``aws:kms``, …), or None where it does not say.
        notes: What could not be checked, or could be better; sentences for the log.
    """

    encryption: str | None
    notes: tuple[str, ...] = ()


class CannotLook(Exception):
    """We may not see this setting, or this S3 does not know it."""


def check(bucket: Bucket, *, account_block: Callable[[], Block] | None = None) -> Safety:
    """Look at the bucket, and write and remove a probe below the prefix; nothing is written into a bucket that is open.

    Args:
        bucket: The destination.
        account_block: Gives the public access block of the bucket's account, which counts beside the bucket's own; called
            only where it decides. None where there is no such thing (an S3 that is not Amazon's).

    Raises:
        BucketUnsafe: It is open to the public, or not proven closed although we could look.
        BucketMissing, BucketRefused, DestinationUnavailable: It does not exist, takes nothing from us, or cannot be reached.
    """
    bucket.check()
    notes: list[str] = []
    _refuse_if_public(bucket, account_block, notes)
    encryption = _probe(bucket, notes)
    for note in notes:
        log.warning("%s: %s", bucket.name, note)
    log.info("%s takes objects and is not open to the public. Encryption: %s.", bucket.name, encryption or "not told")
    return Safety(encryption, tuple(notes))


def account_block(
    bucket: Bucket, session: boto3.Session, owner: str | None = None, config: Config | None = None
) -> Block:
    """The public access block of the AWS account that owns the bucket.

    Args:
        bucket: Whose owner's.
        session: Of someone who may look.
        owner: Account id (12 digits) of the bucket's owner where it is known; None = the session's own account, if the
            bucket is its own: another account's block says nothing of this bucket.
        config: botocore settings of the connection, such as its proxies.

    Raises:
        CannotLook: We may not see it, or it is out of reach.
    """
    # A network that lets only S3 through answers nothing here: that must not hold up the check for minutes.
    quick = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 2})
    quick = config.merge(quick) if config else quick
    try:
        if owner is None:
            owner = session.client("sts", config=quick).get_caller_identity()["Account"]
            bucket.client.head_bucket(Bucket=bucket.name, ExpectedBucketOwner=owner)
        answer = session.client("s3control", config=quick).get_public_access_block(AccountId=owner)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NONE:
            return {}
        raise CannotLook(code) from None
    except BotoCoreError as error:
        raise CannotLook(type(error).__name__) from None
    return _settings_on(answer.get("PublicAccessBlockConfiguration", {}))


# -- closed to the public? ---------------------------------------------------------------------------------------------


def _refuse_if_public(bucket: Bucket, account_block: Callable[[], Block] | None, notes: list[str]) -> None:
    look = partial(_look, notes)
    own = look("its public access block", "s3:GetBucketPublicAccessBlock", lambda: _block_of_bucket(bucket))
    on = own or {}
    doors: list[tuple[str, str]] = []  # (the setting that closes it, what stands open)
    if not on.get("RestrictPublicBuckets") and look(
        "whether its policy is public", "s3:GetBucketPolicyStatus", lambda: _has_public_policy(bucket)
    ):
        doors.append(("RestrictPublicBuckets", "its bucket policy is public"))
    if not on.get("IgnorePublicAcls"):
        off = look("whether ACLs are off", "s3:GetBucketOwnershipControls", lambda: _acls_are_off(bucket))
        who = [] if off else look("its ACL", "s3:GetBucketAcl", lambda: _public_grantees(bucket))
        if who:
            doors.append(("IgnorePublicAcls", f"its ACL lets in {' and '.join(who)}"))
        elif off is False and own is not None:
            doors.append(
                (
                    "IgnorePublicAcls",
                    "ACLs are on and no public access block ignores public ones: any object may be open",
                )
            )
    if doors and account_block is not None:
        of_account = look("the account's public access block", "s3:GetAccountPublicAccessBlock", account_block)
        doors = [door for door in doors if not (of_account or {}).get(door[0])]
    if doors:
        raise BucketUnsafe(_refusal(bucket, [why for _, why in doors]))
    if own is not None and not own:
        notes.append(
            "it has no public access block of its own, so a careless policy could open it. Switch the block on."
        )


def _look(notes: list[str], what: str, permission: str, read: Callable[[], T]) -> T | None:
    """The answer, or None and a note where we may not look."""
    try:
        return read()
    except CannotLook as reason:
        notes.append(f"could not check {what} ({reason}; it takes the permission {permission}).")
        return None


def _refusal(bucket: Bucket, why: list[str]) -> str:
    return (
        f"The bucket {bucket.name} is open to the public: {'; '.join(why)}. The data use agreement forbids sharing the data, so "
        "nothing was written. Close it, for the whole bucket, with\n"
        f"  aws s3api put-public-access-block --bucket {bucket.name} --public-access-block-configuration "
        "BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true\n"
        "or in the S3 console under Permissions > Block public access, and trigger the run again. If the bucket serves "
        "something that must be public, use another one for this data. "
        "https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html"
    )


def _block_of_bucket(bucket: Bucket) -> Block:
    answer = _ask(bucket, bucket.client.get_public_access_block)
    if answer is None:
        return {}
    settings = answer["PublicAccessBlockConfiguration"]
    _field(settings, "RestrictPublicBuckets")
    return _settings_on(settings)


def _settings_on(settings: Mapping[str, Any]) -> Block:
    return {name: True for name, on in settings.items() if on}


def _has_public_policy(bucket: Bucket) -> bool:
    answer = _ask(bucket, bucket.client.get_bucket_policy_status)
    return answer is not None and bool(_field(answer["PolicyStatus"], "IsPublic"))


def _acls_are_off(bucket: Bucket) -> bool:
    answer = _ask(bucket, bucket.client.get_bucket_ownership_controls)
    if answer is None:  # a bucket from before 2023 that nobody touched: ACLs are on
        return False
    rules = _field(answer["OwnershipControls"], "Rules")
    return any(rule.get("ObjectOwnership") == "BucketOwnerEnforced" for rule in rules)


def _public_grantees(bucket: Bucket) -> list[str]:
    grants = _field(_ask(bucket, bucket.client.get_bucket_acl) or {}, "Grants")
    groups = {grant.get("Grantee", {}).get("URI") for grant in grants}
    return [who for uri, who in _PUBLIC_GROUPS.items() if uri in groups]


def _ask(bucket: Bucket, call: Callable[..., Any]) -> dict[str, Any] | None:
    """One question to S3; None where the setting does not exist.

    Raises:
        CannotLook: AccessDenied, or this S3 does not implement it.
        DestinationUnavailable: S3 is away.
        InputError, BucketRefused: A setting, or credentials that have gone, keep it from being asked.
    """
    try:
        answer: dict[str, Any] = call(Bucket=bucket.name, **bucket.owner)
        return answer
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NONE:
            return None
        if code in replies.BUSY:
            raise _away(bucket.name, code) from None
        raise CannotLook(code or "no answer that is understood") from None
    except BotoCoreError as error:
        name = type(error).__name__
        if "Parse" in name:  # an S3 that takes the question for another one
            raise CannotLook("not implemented by this S3") from None
        raise replies.meaning(error, f"s3://{bucket.name}", "how it is protected", bucket.name) from None


def _field(answer: Mapping[str, Any], name: str) -> Any:
    """A part that Amazon's S3 always sends; others answer such questions with something else entirely."""
    if name not in answer:
        raise CannotLook("not implemented by this S3")
    return answer[name]


def _away(bucket: str, code: str) -> DestinationUnavailable:
    return DestinationUnavailable(
        f"S3 could not say how s3://{bucket} is protected ({code}), also after retries. Nothing was written. The check is "
        "repeated by itself; if it goes on, look at the endpoint and the network."
    )


# -- takes and encrypts what we write? ---------------------------------------------------------------------------------


def _probe(bucket: Bucket, notes: list[str]) -> str | None:
    """Write and remove an object; returns how S3 encrypted it."""
    bucket.write_text(PROBE, "Written by the access check, and removed by it.\n")
    try:
        answer = _ask_object(bucket)
    finally:
        try:
            bucket.delete([PROBE])
        except DestinationError as error:
            notes.append(
                f"{bucket.uri(PROBE)} could not be deleted and stays; nothing depends on it. A role that may not delete lacks "
                f"s3:DeleteObject below {bucket.uri(MIRROR)}, which keeps reports in order. {error}"
            )
    encryption = answer.get("ServerSideEncryption")
    if encryption is None:
        notes.append(
            "S3 does not say that it encrypts what is written. Amazon's always does; with another S3, see to it that the disks "
            "below are encrypted."
        )
    return encryption


def _ask_object(bucket: Bucket) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=bucket.key(PROBE), **bucket.owner)
        return answer
    except (ClientError, BotoCoreError):
        # Not being able to read it is found, and explained, by the first task that reads; here it only hides one figure.
        return {}
