"""Third-party servers: Debian's nginx serves the files and accepts objects as a sink; rclone is the S3 server."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from demo import stack
from physionet_mirror.dataset import MIMIC_CXR_JPG

_COMMON = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  default_type application/octet-stream;
  sendfile on; tcp_nopush on; keepalive_requests 100000;
{servers}
}}
"""

# No password is needed, because the password check has its own part. PhysioNet's own client first requests the address
# below /api/.
_FILES = """\
  log_format moment "$msec $status";
  server {{
    listen 127.0.0.1:{port}{tls};
    location /source/ {{ alias {root}/; }}
    location = /source/{slug}/{version} {{ return 404; }}
    location /files/ {{ alias {root}/; autoindex on; access_log {folder}/files.log moment buffer=16k flush=1s; }}
    location = /api/v1/projects/{slug}/versions/ {{
      default_type application/json;
      return 200 '[{{"slug": "{slug}", "title": "", "version": "{version}", "abstract": "", "citation": ""}}]';
    }}
  }}
"""

# nginx receives an image completely, as S3 does, before it asks the second server, which accepts it. Everything else (the
# state of a run) goes to a real S3 server.
_SINK = """\
  log_format put "$request_method $content_length";
  upstream yes {{ server 127.0.0.1:{yes}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port}{tls};
    client_max_body_size 64m; client_body_buffer_size 4m;
    proxy_http_version 1.1; proxy_set_header Connection "";
    location ~ \\.jpg$ {{
      access_log {folder}/sink.log put buffer=16k flush=1s;
      proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_pass http://yes;
    }}
    location / {{ proxy_set_header Host $http_host; proxy_pass {endpoint}; }}
  }}
  server {{
    listen 127.0.0.1:{yes};
    location / {{
      if ($request_method = HEAD) {{ return 404; }}
      add_header ETag '"taken"' always;
      return 200;
    }}
  }}
"""


class Missing(RuntimeError):
    """A program that the benchmark needs is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Tls:
    """A certificate for 127.0.0.1.

    Attributes:
        ca: File of the certificate authority, for clients to trust.
        certificate: File of the certificate.
        key: File of its private key.
    """

    ca: Path
    certificate: Path
    key: Path

    def trusted(self) -> dict[str, str]:
        """The environment variables that make boto3, requests and Go programs trust it."""
        return dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.ca))


def certificate(folder: Path) -> Tls:
    """A new certificate authority and a certificate signed by it, valid for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench authority")])

    def signed(subject: x509.Name, public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        return builder.add_extension(extension, critical=False).sign(authority, SHA256()).public_bytes(Encoding.PEM)

    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    found = Tls(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    found.ca.write_bytes(signed(issuer, authority.public_key(), x509.BasicConstraints(ca=True, path_length=None)))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    found.certificate.write_bytes(signed(host, key.public_key(), names))
    found.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return found


def _listening(tls: Tls | None) -> tuple[str, str]:
    """The options after the port in nginx's ``listen`` line, and the scheme."""
    if tls is None:
        return "", "http"
    return f" ssl; ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key}", "https"


@contextmanager
def files(folder: Path, root: Path, tls: Tls | None = None) -> Iterator[str]:
    """Serve ``<root>/<slug>/<version>/`` by nginx as PhysioNet does, without a password; yields the address.

    The same files are also objects of the bucket ``source``.
    """
    port = stack.free_port()
    slug, version = MIMIC_CXR_JPG.slug, MIMIC_CXR_JPG.version
    listen, scheme = _listening(tls)
    servers = _FILES.format(port=port, tls=listen, root=root, folder=folder, slug=slug, version=version)
    with nginx(folder, servers, port):
        yield f"{scheme}://127.0.0.1:{port}"


@contextmanager
def sink(folder: Path, s3: stack.S3Server, tls: Tls | None = None) -> Iterator[str]:
    """An S3 endpoint that accepts images, logs them in ``sink.log`` and discards them; yields its address."""
    port, yes = stack.free_port(), stack.free_port()
    listen, scheme = _listening(tls)
    servers = _SINK.format(port=port, tls=listen, yes=yes, endpoint=s3.endpoint, folder=folder)
    with nginx(folder, servers, port):
        yield f"{scheme}://127.0.0.1:{port}"


def taken(folder: Path) -> int:
    """Objects that the sink has accepted so far; its log lags by a second."""
    time.sleep(1.2)
    return sum(line.startswith("PUT") for line in (folder / "sink.log").read_text().splitlines())


@contextmanager
def nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    """Run nginx with these ``server`` blocks until the block ends; ``folder`` is emptied, and receives its logs.

    Raises:
        Missing: It is not installed.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Missing(
            "nginx is not installed; nothing was measured. Debian, Ubuntu: apt install nginx-light (or nginx)"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    settings = folder / "nginx.conf"
    settings.write_text(_COMMON.format(folder=folder, user=user, servers=servers))
    command = [program, "-p", folder, "-c", settings]
    with stack.Service("nginx", command, log=folder / "nginx.log", env=stack.plain_environment()) as service:
        _wait_for_port(service, port)
        yield


def _wait_for_port(service: stack.Service, port: int, timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            service.check()
            if time.monotonic() > deadline:
                raise stack.StackError(
                    f"{service.name} did not listen within {timeout:.0f} s; see {service.log}"
                ) from None
            time.sleep(0.05)
