"""schemathesis against the OpenAPI document, on both databases: no 5xx, and no answer that it does not know."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.rig.processes import server
from tests.rig.commands import answer

CASES = int(os.environ.get("API_CASES", "5"))  # of one operation
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_makes_the_server_fail_or_break_its_own_document(tmp_path: Path, database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "SERVER_REQUESTS_PER_S": "100000"}
    with server(tmp_path, **environment) as (_, url):
        key = answer(database_url, "keys", "create", "schemathesis", "--scope", "admin")["key"]
        run = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"{url}/openapi.json",
                *("--header", f"Authorization: Bearer {key}"),
                *("--max-examples", str(CASES), "--phases", "examples,coverage,fuzzing", "--seed", "1"),
                *("--checks", ",".join(CHECKS), "--exclude-path-regex", "/stream$", "--continue-on-failure"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    print(run.stdout[-6000:])
    assert run.returncode == 0, run.stdout[-6000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated
    assert int(generated[1]) > 10 * CASES
