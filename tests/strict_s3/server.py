"""Serves LocalStack's S3 on 127.0.0.1, and prints its address. Runs in an environment of its own (see __init__.py)."""

import argparse
import logging
import os
import tempfile
from pathlib import Path

os.environ |= {"SERVICES": "s3", "DISABLE_EVENTS": "1", "SKIP_SSL_CERT_DOWNLOAD": "1"}

from localstack import config
from localstack.aws.app import LocalstackAwsGateway
from localstack.aws.protocol.service_router import get_service_catalog
from localstack.services.s3 import provider
from rolo.gateway.wsgi import WsgiGateway
from werkzeug.serving import WSGIRequestHandler, make_server

parser = argparse.ArgumentParser()
parser.add_argument("cache", help="a folder that keeps LocalStack's index of AWS's APIs")
parser.add_argument("--prepare", action="store_true", help="make that index, and end")
options = parser.parse_args()

# Without this index every start reads all of AWS's API descriptions: 4.4 s and 480 MB instead of 2 s and 140 MB.
config.dirs.cache = options.cache
Path(options.cache).mkdir(parents=True, exist_ok=True)
get_service_catalog()
if not options.prepare:
    provider.DEFAULT_S3_TMP_DIR = tempfile.mkdtemp()  # in TMPDIR; otherwise all servers share one folder below /tmp
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", 0, WsgiGateway(LocalstackAwsGateway()), threaded=True)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()
