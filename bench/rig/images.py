"""The images of Dockerfile and docker-compose.yml where none can be pulled: Debian's packages under the pinned names.

For tests only, since versions differ; they take settings, users and paths as the pinned ones do. What is there already
is left alone: who can pull does (`docker compose pull`), and the tests run on that. `--remove` takes stand-ins away.
"""

import fcntl
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from bench.rig.processes import ROOT

STAND_INS = Path(__file__).parent / "stand_ins"
LABEL = "series-gateway.stand-in"
SYSTEMD = "series-gateway-systemd:bookworm"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PIP_OPTIONS = {"index-url", "extra-index-url", "proxy", "trusted-host"}  # how this machine reaches the index
COMPOSE_SINCE = (2, 24, 4)  # `!override`, with which the tests take ports that are free
ANSWER_TIMEOUT_S = 30.0  # for a question to an engine, which may hang
TIMEOUT_S = 900.0  # for images that are built together, where the machine is busy and the line slow


def missing() -> str | None:
    """Why no container can be run here; None where it can."""
    if not shutil.which("docker"):
        return "Docker is not installed (Debian: apt-get install docker.io)"
    if not answer("docker", "version", "--format", "{{.Server.Version}}"):
        return "no Docker engine answers (is dockerd running, may this user ask it?)"
    version = answer("docker", "compose", "version", "--short")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < COMPOSE_SINCE:
        return f"docker compose is {version or 'missing'}: 2.24.4 or later is needed (Debian 13: docker-compose)"
    return None


def answer(*command: str) -> str:
    """Return what a command prints; nothing if it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def pinned() -> dict[str, str]:
    """Every image that is pulled, by the last part of its name."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    images = {service["image"] for service in services if "image" in service}
    images |= set(re.findall(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    return {re.split("[/:]", image)[-2]: image for image in images}


def make(*names: str) -> None:
    """See that the images with these short names are there; the first takes some minutes."""
    images = pinned() | {"systemd": SYSTEMD}
    with alone():
        lacking = [name for name in ("python", *names) if not is_here(images[name])]
        for name in lacking:
            print(f"making a stand-in for {images[name]}", flush=True)
        if "python" in lacking:
            make_python(images["python"])
        services = {
            name: {"image": images[name], "build": {"context": str(STAND_INS / name), "labels": [LABEL]}}
            for name in lacking
            if name != "python"
        }
        if services:
            build(services)


def is_here(image: str) -> bool:
    """Tell if this machine has an image."""
    return bool(answer("docker", "image", "inspect", "--format", "{{.Id}}", image))


def build(services: Mapping[str, object]) -> None:
    """Build the images of Compose services, which takes half of the time of `docker build` where buildx is missing."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"services": services}, file)
        file.flush()
        run("docker", "compose", "--project-name", "stand-ins", "--file", file.name, "build", "--quiet")


@contextmanager
def alone() -> Iterator[None]:
    """Let one process of this machine in at a time."""
    with open(Path(tempfile.gettempdir()) / "series-gateway-images.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_python(image: str) -> None:
    """Debian with Python and pip, which reach packages as this machine does."""
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        raise FileNotFoundError(f"{image} is not here: pull it, or install debootstrap and be root, to make a stand-in")
    with tempfile.TemporaryDirectory(prefix="series-gateway-debian-") as folder:
        root = Path(folder)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder, *mirror())
        shutil.copyfile(
            os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().openssl_cafile, root / CERTIFICATES
        )
        (root / "etc/pip.conf").write_text(pip_configuration())
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for name in ("apt/lists", "apt/archives"):
            for path in (*root.glob(f"var/lib/{name}/*"), *root.glob(f"var/cache/{name}/*.deb")):
                path.unlink() if path.is_file() else shutil.rmtree(path)
        archive = root.with_suffix(".tar")
        try:
            run("tar", "--directory", folder, "--create", "--file", str(archive), ".")
            run("docker", "import", "--change", f"LABEL {LABEL}=", "--change", 'CMD ["python3"]', str(archive), image)
        finally:
            archive.unlink(missing_ok=True)


def mirror() -> list[str]:
    """Return the address from which this machine has its Debian packages, or none."""
    sites = answer("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm")
    return sites.splitlines()[:1]


def pip_configuration() -> str:
    """This machine's, as far as it says where packages come from."""
    found = re.findall(r"^\S+\.([\w-]+)='(.*)'$", answer(sys.executable, "-m", "pip", "config", "list"), re.MULTILINE)
    given = {name: value for name, value in found if name in PIP_OPTIONS} | {"cert": f"/{CERTIFICATES}"}
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in given.items())


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr)[-3000:]}")


def remove() -> None:
    """Take away what was made here."""
    images = answer("docker", "image", "ls", "--quiet", "--filter", f"label={LABEL}").split()
    if images:
        run("docker", "image", "rm", "--force", *images)


if __name__ == "__main__":
    problem = missing()
    if problem:
        sys.exit(problem)
    if "--remove" in sys.argv:
        remove()
    else:
        make(*(folder.name for folder in sorted(STAND_INS.iterdir())))
