"""Debian's nginx as it is set up in front of a web application, without a word more than that needs."""

import grp
import os
import pwd
import shutil
from pathlib import Path

from bench.rig.processes import Process

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
NGINX_MISSING = "nginx is not installed (Debian: apt-get install nginx)"

CONFIGURATION = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
{locations}    }}
}}
"""
PASSED = """        location {path} {{
            proxy_pass {url};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
"""


def passed(path: str, url: str) -> str:
    """A location behind which another server answers."""
    return PASSED.format(path=path, url=url)


def nginx_process(folder: Path, port: int, locations: str) -> Process:
    """nginx on `port` of this machine."""
    path = folder / "nginx.conf"
    ours = f"user {pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name};"
    user = ours if os.geteuid() == 0 else ""  # only root may choose one
    path.write_text(CONFIGURATION.format(user=user, folder=folder, port=port, locations=locations))
    command = [str(NGINX), "-p", str(folder), "-e", "stderr", "-c", str(path), "-g", "daemon off;"]
    return Process("nginx", command, folder)
