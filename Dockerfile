# One image for both processes; docker-compose.yml names the command.

FROM python:3.11-slim-bookworm AS build
RUN python -m venv --without-pip /venv
COPY requirements.txt .
RUN pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check -r requirements.txt

FROM python:3.11-slim-bookworm
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A fixed uid, so that a volume written by one image can be written by the next.
RUN useradd --uid 10001 --create-home gateway && install -d -o gateway -g gateway /data /keys /secrets
WORKDIR /app
COPY --from=build /venv /venv
# What .dockerignore lets through: what runs, and requirements.txt.
COPY . .
# The disk is read-only as they run: compiled here, not at every start.
RUN python -m compileall -q .
USER gateway
VOLUME /data
CMD ["python", "client.py"]
